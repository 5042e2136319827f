"""Which rows make up the batch of a step: a pure function of the seed and the step.

Nothing has to be saved to resume, and every worker can work out its own share.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mla_ray.data.blocks import Examples


class Shuffled(Protocol):
    """Rows in shuffled epochs, without end, as `blocks.ShuffledTable` has them."""

    def take(self, start: int, count: int) -> Examples:
        """`count` rows from position `start` on."""
        ...


class BatchSampler:
    """Batches over one or more tables, each with an equal share of every batch.

    A small clean table is not drowned by a large one beside it. Each table comes in shuffled
    epochs; within a pool of batches rows are grouped by length, so that little padding is needed.
    One pool is held at a time.

    Args:
        tables: what batches are drawn from.
        batch: rows of a batch, all tables together.
        seed: of the order of a pool's batches.

    """

    POOL = 16

    def __init__(self, tables: Sequence[Shuffled], batch: int, seed: int) -> None:
        self.tables = tables
        self.seed = seed
        base, extra = divmod(batch, len(tables))
        self.shares = [base + (table < extra) for table in range(len(tables))]
        self._pool: tuple[int, list[tuple[Examples, npt.NDArray[np.int64]]]] | None = None

    def __getitem__(self, step: int) -> Examples:
        """The rows of the batch of this step, table after table."""
        number, place = divmod(step, self.POOL)
        if self._pool is None or self._pool[0] != number:
            self._pool = None  # freed before the next is read
            order = np.random.default_rng([self.seed, 1, number]).permutation(self.POOL)
            self._pool = number, [self._grouped(t, number, order) for t in range(len(self.tables))]
        return Examples.concatenate([rows[index[place]] for rows, index in self._pool[1]])

    def _grouped(
        self, table: int, number: int, order: npt.NDArray[np.int64]
    ) -> tuple[Examples, npt.NDArray[np.int64]]:
        """Rows of one pool, and which of them are in each of its batches [POOL, share]."""
        size = self.POOL * self.shares[table]
        rows = self.tables[table].take(number * size, size)
        shortest_first = np.argsort(rows.lengths, kind="stable")
        return rows, shortest_first.reshape(self.POOL, -1)[order]


def language_of_step(languages: Sequence[str], step: int, seed: int) -> tuple[str, int]:
    """The language whose batch a step is, and the number of that batch among its own.

    One language a batch, uniformly (paper, section 3.3).

    Drawn without replacement in rounds, so that every language has its share after any round.
    """
    number, place = divmod(step, len(languages))
    order = np.random.default_rng([seed, 2, number]).permutation(len(languages))
    return languages[order[place]], number
