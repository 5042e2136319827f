"""Some rows of a file on their way through the checks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mla_ray.data.problems import TableProblem


@dataclass
class Chunk:
    """The rows of a chunk that nothing is wrong with so far, and the problems of the others.

    Column "row" of `table` is their place in the file, as `TableProblem.row` counts.
    """

    file: UPath
    table: pa.Table
    _refused: dict[int, TableProblem] = field(default_factory=dict)

    def refuse(self, faults: Mapping[int, str]) -> None:
        """Take these rows out, for these reasons: a row is refused once, for its first fault."""
        if faults:
            file = str(self.file)
            self._refused |= {row: TableProblem(file, row, why) for row, why in faults.items()}
            bad = pc.is_in(self.table["row"], pa.array(list(faults), pa.int64()))
            self.table = self.table.filter(pc.invert(bad))

    def set_column(self, column: str, values: pa.Array) -> None:
        position = self.table.column_names.index(column)
        self.table = self.table.set_column(position, column, values)

    def values(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """The cells of these columns, row by row."""
        return zip(*(self.table[column].to_pylist() for column in columns), strict=True)

    def keep_where(self, column: str, value: str) -> dict[str, int]:
        """Leave only rows that have the value; returns how many had which."""
        counts = pc.value_counts(self.table[column]).to_pylist()
        self.table = self.table.filter(pc.equal(self.table[column], value))
        return {entry["values"]: entry["counts"] for entry in counts}

    @property
    def problems(self) -> list[TableProblem]:
        """Of the refused rows, in the order of the file."""
        return [self._refused[row] for row in sorted(self._refused)]
