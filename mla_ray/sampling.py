"""Which rows make up the batch of a step: a pure function of the seed and the step.

Nothing has to be saved to resume, and every worker can work out its own share. May import: numpy.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class Batches:
    """Batches over one or more tables, each with an equal share of every batch.

    A small clean table is not drowned by a large one beside it. Each table is walked in shuffled
    epochs; within a pool of batches rows are grouped by length, so that little padding is needed.

    Args:
        lengths: tokens of every row, an array a table.
        batch: rows of a batch, all tables together.

    """

    POOL = 16

    def __init__(self, lengths: Sequence[npt.NDArray[np.int64]], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.seed = seed
        base, extra = divmod(batch, len(lengths))
        self.shares = [base + (table < extra) for table in range(len(lengths))]
        self._pool: tuple[int, list[Rows]] | None = None
        self._epoch: dict[int, tuple[int, Rows]] = {}

    def __getitem__(self, step: int) -> list[Rows]:
        """The rows of each table in the batch of this step."""
        number, place = divmod(step, self.POOL)
        if self._pool is None or self._pool[0] != number:
            order = np.random.default_rng([self.seed, 1, number]).permutation(self.POOL)
            self._pool = number, [self._grouped(t, number)[order] for t in range(len(self.shares))]
        return [pool[place] for pool in self._pool[1]]

    def _grouped(self, table: int, number: int) -> Rows:
        """Rows [POOL, share] of one pool, the shortest texts first."""
        size = self.POOL * self.shares[table]
        rows = self._walk(table, number * size, size)
        rows = rows[np.argsort(self.lengths[table][rows], kind="stable")]
        return rows.reshape(self.POOL, -1)

    def _walk(self, table: int, start: int, count: int) -> Rows:
        """`count` rows from position `start` of the endless walk through shuffled epochs."""
        total, parts = len(self.lengths[table]), []
        while count:
            epoch, offset = divmod(start, total)
            if self._epoch.get(table, (-1,))[0] != epoch:
                rng = np.random.default_rng([self.seed, 0, table, epoch])
                self._epoch[table] = epoch, rng.permutation(total)
            part = self._epoch[table][1][offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


def turn(names: Sequence[str], step: int, seed: int) -> tuple[str, int]:
    """Whose batch a step is, and which of its batches: one language a batch, uniformly (paper).

    Drawn without replacement in rounds, so that every language has its share after any round.
    """
    number, place = divmod(step, len(names))
    order = np.random.default_rng([seed, 2, number]).permutation(len(names))
    return names[order[place]], number
