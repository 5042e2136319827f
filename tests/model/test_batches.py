"""Promises of model.batches."""

import numpy as np
import pytest

from mla_ray.model.batches import MAX_TOKENS, by_length, by_tokens


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("size", [1, 8, 1000])
def test_every_row_is_in_one_batch_beside_those_of_its_length(count: int, size: int) -> None:
    draw = np.random.default_rng(count)
    lengths = draw.integers(0, 20, count).tolist()
    batches = list(by_length(lengths, size))
    assert sorted(row for rows in batches for row in rows) == list(range(count))
    assert all(1 <= len(rows) <= size for rows in batches)
    assert [lengths[row] for rows in batches for row in rows] == sorted(lengths)


@pytest.mark.parametrize("count", [0, 1, 7, 100])
@pytest.mark.parametrize("most", [1, 30, 1000])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_has_at_most_so_many_tokens_and_the_longest_come_first(
    count: int, most: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_TOKENS, "cpu", most)
    draw = np.random.default_rng(count)
    lengths = draw.integers(0, 20, count).tolist()
    batches = list(by_tokens(lengths, device))
    assert [lengths[row] for rows in batches for row in rows] == sorted(lengths, reverse=True)
    assert sorted(row for rows in batches for row in rows) == list(range(count))
    for number, rows in enumerate(batches, 1):
        longest = max(1, lengths[rows[0]])
        assert len(rows) == 1 or len(rows) * longest <= most
        is_full = (len(rows) + 1) * longest > most
        assert is_full or number == len(batches)


def test_a_gpu_has_larger_batches() -> None:
    lengths = [8] * 10_000
    assert len(next(by_tokens(lengths, "cuda"))) > 16 * len(next(by_tokens(lengths, "cpu")))
