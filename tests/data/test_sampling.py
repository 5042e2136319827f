"""Promises of mla_ray.data.sampling."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mla_ray.data.blocks import Examples
from mla_ray.data.sampling import BatchSampler, language_of_step
from tests.support.tables import make_table

POOL = BatchSampler.POOL


def lengths(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(2, 30, count)


Make = Callable[..., BatchSampler]


@pytest.fixture
def batches_of(tmp_path: Path) -> Make:
    """BatchSampler over tables with texts of these lengths, in blocks of at most `limit` rows."""

    def make(
        tables: Sequence[npt.NDArray[np.int64]], batch: int, seed: int = 0, limit: int = 64
    ) -> BatchSampler:
        walks = [
            make_table(tmp_path / f"{seed} {n}", of, seed=seed, number=n, limit=limit)
            for n, of in enumerate(tables)
        ]
        return BatchSampler(walks, batch, seed)

    return make


def rows_of(batch: Examples) -> list[int]:
    return batch.frozen[:, 0].astype(int).tolist()


def test_a_batch_is_a_function_of_seed_and_step(batches_of: Make) -> None:
    tables = [lengths(100), lengths(1000)]
    walked = batches_of(tables, 12, seed=3)
    expected = [rows_of(walked[step]) for step in range(60)]
    jumping = BatchSampler(walked.tables, 12, seed=3)
    for step in np.random.default_rng(0).permutation(60):
        assert rows_of(jumping[step]) == expected[step]
    for step in (0, 17, 59):  # as a resumed run or another worker asks
        assert rows_of(batches_of(tables, 12, seed=3)[step]) == expected[step]
    other = batches_of(tables, 12, seed=4)
    assert [rows_of(other[step]) for step in range(60)] != expected


@pytest.mark.parametrize("limit", [10, 10_000])
@pytest.mark.parametrize("count", [POOL * 6, POOL * 12, POOL * 9, POOL * 6 - 1, 7])
def test_every_epoch_covers_every_row_once(batches_of: Make, count: int, limit: int) -> None:
    batches = batches_of([lengths(count)], 6, limit=limit)
    pools = int(np.lcm(count, POOL * 6)) // (POOL * 6)
    steps = min(pools, 4) * POOL
    seen = Counter(row for step in range(steps) for row in rows_of(batches[step]))
    whole, rest = divmod(steps * 6, count)
    assert set(seen) == set(range(count))
    assert set(seen.values()) == ({whole, whole + 1} if rest else {whole})
    assert list(seen.values()).count(whole + 1) == rest


def test_epochs_differ(batches_of: Make) -> None:
    batches = batches_of([lengths(POOL * 6)], 6)
    first, second = ([rows_of(batches[e * POOL + i]) for i in range(POOL)] for e in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("tables", "batch", "shares"), [(1, 8, [8]), (2, 8, [4, 4]), (2, 9, [5, 4]), (3, 11, [4, 4, 3])]
)
def test_tables_have_equal_shares_of_every_batch(
    batches_of: Make, tables: int, batch: int, shares: list[int]
) -> None:
    # Lengths tell the tables apart.
    kinds = [np.full(size, 3 + n) for n, size in enumerate([20, 500, 300][:tables])]
    batches = batches_of(kinds, batch)
    for step in range(2 * POOL):
        found = Counter(batches[step].lengths.tolist())
        assert [found[3 + n] for n in range(tables)] == shares


def test_tables_are_shuffled_each_its_own_way(batches_of: Make) -> None:
    batches = batches_of([np.full(500, 4), np.full(500, 4)], 16)
    for step in range(POOL):
        rows = rows_of(batches[step])
        assert rows[:8] != rows[8:]


def test_batches_are_grouped_by_length(batches_of: Make) -> None:
    batches = batches_of([lengths(2000)], 8)
    pool = [batches[step].lengths for step in range(POOL)]
    in_order = sorted(pool, key=lambda found: (found.min(), found.max()))
    for shorter, longer in pairwise(in_order):
        assert shorter.max() <= longer.min()
    padded = sum(int(found.max()) * len(found) for found in pool)
    assert padded < 1.1 * sum(int(found.sum()) for found in pool)


def test_short_batches_do_not_come_first_and_both_tables_are_short_together(
    batches_of: Make,
) -> None:
    batches = batches_of([lengths(2000), lengths(3000, seed=1)], 16)
    halves = [np.split(batches[step].lengths, 2) for step in range(POOL)]
    means = np.array([[half.mean() for half in both] for both in halves])
    assert (np.diff(means[:, 0]) < 0).any()
    assert means[:, 0].argsort().tolist() == means[:, 1].argsort().tolist()


@pytest.mark.parametrize("names", [["de"], ["de", "fr", "sw"]])
def test_turns_are_uniform_in_every_round(names: list[str]) -> None:
    rounds = 50
    turns = [language_of_step(names, step, seed=0) for step in range(rounds * len(names))]
    assert Counter(turns) == Counter((name, number) for name in names for number in range(rounds))
    for number in range(rounds):
        some = turns[number * len(names) : (number + 1) * len(names)]
        assert {name for name, _ in some} == set(names)


def test_turns_are_shuffled_by_seed() -> None:
    names = ["de", "fr", "sw"]
    first = [language_of_step(names, step, seed=0) for step in range(30)]
    assert first == [language_of_step(names, step, seed=0) for step in range(30)]
    assert first != [language_of_step(names, step, seed=1) for step in range(30)]
    assert len({tuple(name for name, _ in first[i : i + 3]) for i in range(0, 30, 3)}) > 2
