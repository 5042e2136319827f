"""Rows that start beside the English tokens they are translations of."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mla_ray.model.alignment import aligned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Ids

ENGLISH = ("dog", "cat", "snow", "red", "grape")
BEGIN, END, UNSEEN = 1, 2, 3 + len(ENGLISH)


def targets(texts: list[str]) -> list[Ids]:
    """A made-up language with one token a word, in reversed order."""
    return [
        np.array([BEGIN, *(3 + ENGLISH.index(w) for w in reversed(text.split())), END], np.int32)
        for text in texts
    ]


@pytest.fixture
def sources() -> list[str]:
    """No word stands alone: what goes with what has to be worked out."""
    return [f"{a} {b}" for a in ENGLISH for b in ENGLISH if a != b]


@pytest.fixture
def fallback() -> torch.Tensor:
    return torch.full((UNSEEN + 1, 32), 0.25)


def test_a_row_starts_nearest_to_the_tokens_of_its_translation(
    native: Native, sources: list[str], fallback: torch.Tensor
) -> None:
    rows = aligned_rows(native, sources, targets(sources), fallback, seed=0)
    ids_BL = native.tokenize(ENGLISH)
    end_B = native.text.english_end(ids_BL).tolist()
    table = native.text.token_embedding.weight
    meaning = torch.stack(
        [table[ids[1:end]].mean(0) for ids, end in zip(ids_BL, end_B, strict=True)]
    )
    mine = rows[3 : 3 + len(ENGLISH)]
    likeness = F.cosine_similarity(mine[:, None], meaning[None], dim=-1)
    assert likeness.argmax(1).tolist() == list(range(len(ENGLISH)))
    assert likeness.diagonal().min() > 0.99


def test_begin_and_end_are_the_natives_and_a_token_without_translation_keeps_its_row(
    native: Native, sources: list[str], fallback: torch.Tensor
) -> None:
    rows = aligned_rows(native, sources, targets(sources), fallback, seed=0)
    table = native.text.token_embedding.weight
    empty = native.tokenize([""])[0]
    assert torch.equal(rows[BEGIN], table[empty[0]])
    assert torch.equal(rows[END], table[empty[1]])
    assert torch.equal(rows[UNSEEN], fallback[UNSEEN])
    assert torch.equal(rows[0], fallback[0])


def test_the_same_corpus_gives_the_same_rows_and_leaves_the_fallback_alone(
    native: Native, sources: list[str], fallback: torch.Tensor
) -> None:
    before = fallback.clone()
    first = aligned_rows(native, sources, targets(sources), fallback, seed=0)
    assert torch.equal(first, aligned_rows(native, sources, targets(sources), fallback, seed=0))
    assert torch.equal(fallback, before)


def test_a_corpus_over_the_limit_is_aligned_in_part(
    native: Native,
    sources: list[str],
    fallback: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mla_ray.model.alignment.MAX_LINKS", 4)
    rows = aligned_rows(native, sources, targets(sources), fallback, seed=0)
    untouched = [n for n in range(len(ENGLISH)) if torch.equal(rows[3 + n], fallback[3 + n])]
    assert 0 < len(untouched) < len(ENGLISH)
