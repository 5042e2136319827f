"""Selection of the rows of each step's batch, as a pure function of the seed and the step.

The sampler has no state to save in a checkpoint, and every worker can compute its own share.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mla_ray.data.blocks import Examples


class Shuffled(Protocol):
    """Interface of an endless sequence of shuffled rows, such as `blocks.ShuffledTable`."""

    def take(self, start: int, count: int) -> Examples:
        """Return `count` rows from position `start` of the sequence."""
        ...


class BatchSampler:
    """Sampler of batches in which each of one or more tables has an equal share.

    A small, clean table therefore counts as much as a large one. Each table is read in shuffled
    epochs. `POOL` consecutive batches form a pool. Inside a pool, rows of similar length share a
    batch, which reduces padding. Only one pool is in memory.

    Args:
        tables: Tables to draw rows from.
        batch: Number of rows in a batch, over all tables.
        seed: Seed of the order of the batches in a pool.

    """

    POOL = 16
    """Number of batches in a pool."""

    def __init__(self, tables: Sequence[Shuffled], batch: int, seed: int) -> None:
        self.tables = tables
        self.seed = seed
        base, extra = divmod(batch, len(tables))
        self.shares = [base + (table < extra) for table in range(len(tables))]
        self._pool: tuple[int, list[tuple[Examples, npt.NDArray[np.int64]]]] | None = None

    def __getitem__(self, step: int) -> Examples:
        """Return the rows of a step's batch, table after table."""
        number, place = divmod(step, self.POOL)
        if self._pool is None or self._pool[0] != number:
            self._pool = None  # frees the memory before the next pool is read
            order = np.random.default_rng([self.seed, 1, number]).permutation(self.POOL)
            self._pool = number, [self._grouped(t, number, order) for t in range(len(self.tables))]
        return Examples.concatenate([rows[index[place]] for rows, index in self._pool[1]])

    def _grouped(
        self, table: int, number: int, order: npt.NDArray[np.int64]
    ) -> tuple[Examples, npt.NDArray[np.int64]]:
        """Return the rows of a pool, and the row numbers of its batches, `[POOL, share]` int64."""
        size = self.POOL * self.shares[table]
        rows = self.tables[table].take(number * size, size)
        shortest_first = np.argsort(rows.lengths, kind="stable")
        return rows, shortest_first.reshape(self.POOL, -1)[order]


def language_of_step(languages: Sequence[str], step: int, seed: int) -> tuple[str, int]:
    """Return the language of a step and the number of that language's batch.

    Each batch has one language, which is drawn uniformly (paper, section 3.3). Languages are drawn
    without replacement in rounds, so all have the same number of batches after every round.
    """
    number, place = divmod(step, len(languages))
    order = np.random.default_rng([seed, 2, number]).permutation(len(languages))
    return languages[order[place]], number
