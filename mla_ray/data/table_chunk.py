"""Chunk of a table file that passes through the checks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mla_ray.data.problems import TableProblem


@dataclass
class Chunk:
    """Valid rows of a part of a file, and the problems of the refused rows.

    Attributes:
        file: File of the rows.
        table: Valid rows. Column `row` is their place in the file, as `TableProblem.row` counts.

    """

    file: UPath
    table: pa.Table
    _refused: dict[int, TableProblem] = field(default_factory=dict)

    def refuse(self, faults: Mapping[int, str]) -> None:
        """Remove rows from the table and record why.

        Later checks do not see a refused row, so each row is refused once, for its first fault.

        Args:
            faults: Message for each refused row.

        """
        if faults:
            file = str(self.file)
            self._refused |= {row: TableProblem(file, row, why) for row, why in faults.items()}
            bad = pc.is_in(self.table["row"], pa.array(list(faults), pa.int64()))
            self.table = self.table.filter(pc.invert(bad))

    def set_column(self, column: str, values: pa.Array) -> None:
        """Replace the values of a column."""
        position = self.table.column_names.index(column)
        self.table = self.table.set_column(position, column, values)

    def values(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over the cells of these columns, row by row."""
        return zip(*(self.table[column].to_pylist() for column in columns), strict=True)

    def keep_where(self, column: str, value: str) -> dict[str, int]:
        """Keep only the rows that have this value.

        Returns:
            Number of rows by value, before the others were removed.

        """
        counts = pc.value_counts(self.table[column]).to_pylist()
        self.table = self.table.filter(pc.equal(self.table[column], value))
        return {entry["values"]: entry["counts"] for entry in counts}

    @property
    def problems(self) -> list[TableProblem]:
        """Problems of the refused rows, in the order of the file."""
        return [self._refused[row] for row in sorted(self._refused)]
