"""Promises of mla_ray.sampling."""

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from mla_ray.sampling import Batches, turn

POOL = Batches.POOL


def lengths(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(2, 30, count)


def as_lists(batch: list[npt.NDArray[np.int64]]) -> list[list[int]]:
    return [rows.tolist() for rows in batch]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    tables = [lengths(100), lengths(1000)]
    walked = Batches(tables, 12, seed=3)
    expected = [as_lists(walked[step]) for step in range(60)]
    jumping = Batches(tables, 12, seed=3)
    for step in np.random.default_rng(0).permutation(60):
        assert as_lists(jumping[step]) == expected[step]
    for step in (0, 17, 59):  # as a resumed run or another worker asks
        assert as_lists(Batches(tables, 12, seed=3)[step]) == expected[step]
    other = Batches(tables, 12, seed=4)
    assert [as_lists(other[step]) for step in range(60)] != expected


@pytest.mark.parametrize("count", [POOL * 6, POOL * 12, POOL * 9, POOL * 6 - 1, 7])
def test_every_epoch_covers_every_row_once(count: int) -> None:
    batches = Batches([lengths(count)], 6, seed=0)
    pools = int(np.lcm(count, POOL * 6)) // (POOL * 6)
    steps = min(pools, 4) * POOL
    seen = Counter(row for step in range(steps) for row in batches[step][0].tolist())
    whole, rest = divmod(steps * 6, count)
    assert set(seen) == set(range(count))
    assert set(seen.values()) == ({whole, whole + 1} if rest else {whole})
    assert list(seen.values()).count(whole + 1) == rest


def test_epochs_differ() -> None:
    batches = Batches([lengths(POOL * 6)], 6, seed=0)
    first, second = ([as_lists(batches[e * POOL + i]) for i in range(POOL)] for e in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("tables", "batch", "shares"), [(1, 8, [8]), (2, 8, [4, 4]), (2, 9, [5, 4]), (3, 11, [4, 4, 3])]
)
def test_tables_have_equal_shares_of_every_batch(
    tables: int, batch: int, shares: list[int]
) -> None:
    sizes = [20, 5000, 300][:tables]
    batches = Batches([lengths(size) for size in sizes], batch, seed=0)
    for step in range(2 * POOL):
        rows = batches[step]
        assert [len(part) for part in rows] == shares
        for part, size in zip(rows, sizes, strict=True):
            assert part.min() >= 0
            assert part.max() < size


def test_tables_are_shuffled_each_its_own_way() -> None:
    batches = Batches([np.full(500, 4), np.full(500, 4)], 16, seed=0)
    assert all((first != second).any() for first, second in (batches[step] for step in range(POOL)))


def test_batches_are_grouped_by_length() -> None:
    tables = [lengths(2000), lengths(3000, seed=1)]
    batches = Batches(tables, 16, seed=0)
    for table, of in enumerate(tables):
        pool = [of[batches[step][table]] for step in range(POOL)]
        in_order = sorted(pool, key=lambda found: (found.min(), found.max()))
        for shorter, longer in pairwise(in_order):
            assert shorter.max() <= longer.min()
        padded = sum(int(found.max()) * len(found) for found in pool)
        assert padded < 1.1 * sum(int(found.sum()) for found in pool)


def test_short_batches_do_not_come_first_and_both_tables_are_short_together() -> None:
    tables = [lengths(2000), lengths(3000, seed=1)]
    batches = Batches(tables, 16, seed=0)
    means = np.array(
        [
            [of[rows].mean() for of, rows in zip(tables, batches[step], strict=True)]
            for step in range(POOL)
        ]
    )
    assert (np.diff(means[:, 0]) < 0).any()
    assert means[:, 0].argsort().tolist() == means[:, 1].argsort().tolist()


@pytest.mark.parametrize("names", [["de"], ["de", "fr", "sw"]])
def test_turns_are_uniform_in_every_round(names: list[str]) -> None:
    rounds = 50
    turns = [turn(names, step, seed=0) for step in range(rounds * len(names))]
    assert Counter(turns) == Counter((name, number) for name in names for number in range(rounds))
    for number in range(rounds):
        some = turns[number * len(names) : (number + 1) * len(names)]
        assert {name for name, _ in some} == set(names)


def test_turns_are_shuffled_by_seed() -> None:
    names = ["de", "fr", "sw"]
    first = [turn(names, step, seed=0) for step in range(30)]
    assert first == [turn(names, step, seed=0) for step in range(30)]
    assert first != [turn(names, step, seed=1) for step in range(30)]
    assert len({tuple(name for name, _ in first[i : i + 3]) for i in range(0, 30, 3)}) > 2
