"""Which rows make up the batch of a step: a pure function of the seed and the step.

Nothing has to be saved to resume, and every worker can work out its own share.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mla_ray.data.blocks import Rows


class Walk(Protocol):
    """An endless walk through the shuffled epochs of a table, as `blocks.Table` is one."""

    def take(self, start: int, count: int) -> Rows:
        """`count` rows from position `start` on."""
        ...


class Batches:
    """Batches over one or more tables, each with an equal share of every batch.

    A small clean table is not drowned by a large one beside it. Each table is walked in shuffled
    epochs; within a pool of batches rows are grouped by length, so that little padding is needed.
    One pool is held at a time.

    Args:
        tables: what is walked.
        batch: rows of a batch, all tables together.
        seed: of the order of a pool's batches.

    """

    POOL = 16

    def __init__(self, tables: Sequence[Walk], batch: int, seed: int) -> None:
        self.tables = tables
        self.seed = seed
        base, extra = divmod(batch, len(tables))
        self.shares = [base + (table < extra) for table in range(len(tables))]
        self._pool: tuple[int, list[tuple[Rows, npt.NDArray[np.int64]]]] | None = None

    def __getitem__(self, step: int) -> Rows:
        """The rows of the batch of this step, table after table."""
        number, place = divmod(step, self.POOL)
        if self._pool is None or self._pool[0] != number:
            self._pool = None  # freed before the next is read
            order = np.random.default_rng([self.seed, 1, number]).permutation(self.POOL)
            self._pool = number, [self._grouped(t, number, order) for t in range(len(self.tables))]
        return Rows.concatenate([rows[index[place]] for rows, index in self._pool[1]])

    def _grouped(
        self, table: int, number: int, order: npt.NDArray[np.int64]
    ) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Rows of one pool, and which of them are in each of its batches [POOL, share]."""
        size = self.POOL * self.shares[table]
        rows = self.tables[table].take(number * size, size)
        shortest_first = np.argsort(rows.lengths, kind="stable")
        return rows, shortest_first.reshape(self.POOL, -1)[order]


def turn(names: Sequence[str], step: int, seed: int) -> tuple[str, int]:
    """Whose batch a step is, and which of its batches: one language a batch, uniformly (paper).

    Drawn without replacement in rounds, so that every language has its share after any round.
    """
    number, place = divmod(step, len(names))
    order = np.random.default_rng([seed, 2, number]).permutation(len(names))
    return names[order[place]], number
