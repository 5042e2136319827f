"""How long a batch must be, which the tower alone decides."""

import numpy as np
import torch

from mla_ray.model.native import Native
from tests.support.natives import CONTEXT

ROWS = [np.array([3, 4, 2], np.int32), np.array([3, 4, 5, 6, 2], np.int32)]


def test_a_batch_is_as_long_as_its_longest_text(native: Native) -> None:
    ids, lengths = native.text.pad(ROWS)
    assert ids.tolist() == [[3, 4, 2, 0, 0], [3, 4, 5, 6, 2]]
    assert (ids.dtype, lengths.dtype) == (torch.int64, torch.int64)
    assert lengths.tolist() == [3, 5]


def test_texts_fill_the_context_of_a_tower_that_sees_padding(bidirectional: Native) -> None:
    ids, lengths = bidirectional.text.pad(ROWS)
    assert ids.tolist() == [[3, 4, 2] + [0] * (CONTEXT - 3), [3, 4, 5, 6, 2] + [0] * (CONTEXT - 5)]
    assert lengths.tolist() == [3, 5]


def test_english_is_trimmed_after_the_longest_text_alike(
    native: Native, bidirectional: Native
) -> None:
    ids = native.tokenize(["a dog", "cat"])
    assert ids.shape == (2, CONTEXT)
    longest = max(row.index(2) for row in ids.tolist()) + 1  # 2 ends a text
    assert longest < CONTEXT
    assert native.text.trim(ids).tolist() == [row[:longest] for row in ids.tolist()]
    assert bidirectional.text.trim(ids).tolist() == ids.tolist()
