"""Promises of model.batches."""

import numpy as np
import pytest

from mla_ray.model.batches import by_length


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("size", [1, 8, 1000])
def test_every_row_is_in_one_batch_beside_those_of_its_length(count: int, size: int) -> None:
    draw = np.random.default_rng(count)
    lengths = draw.integers(0, 20, count).tolist()
    batches = list(by_length(lengths, size))
    assert sorted(row for rows in batches for row in rows) == list(range(count))
    assert all(1 <= len(rows) <= size for rows in batches)
    assert [lengths[row] for rows in batches for row in rows] == sorted(lengths)
