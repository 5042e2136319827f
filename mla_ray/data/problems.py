"""What is wrong with a user's table, row by row, in words that name the place and the remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from mla_ray.data.table_endings import row_unit

SHOWN_PROBLEMS = 10
KEPT_PROBLEMS = 1000
OR_SKIP = "drop the row or pass --skip-invalid"


@dataclass(frozen=True)
class TableProblem:
    """What is wrong, and where: `row` is as `row_unit` counts."""

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.row is None else place_of(self.file, self.row)
        return f"{place}: {self.message}"


class InvalidTable(ValueError):
    """A table that is refused.

    Args:
        problems: what is wrong with it, or of very many the first.
        count: how many there are, if more than `problems` holds.

    """

    def __init__(self, problems: Sequence[TableProblem], count: int | None = None) -> None:
        super().__init__(problems, count)
        self.problems = list(problems)
        self.count = len(self.problems) if count is None else count

    @classmethod
    def of_file(cls, file: UPath | str | Path, message: str) -> "InvalidTable":
        """For a fault of a whole file."""
        return cls([TableProblem(str(file), None, message)])

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := self.count - len(lines)) > 0:
            lines.append(f"… and {more} more")
        if all(problem.row is not None for problem in self.problems):
            lines.append(f"Mend the rows, or pass --skip-invalid to leave out {self.count}.")
        else:
            lines.append("Mend the file; --skip-invalid does not help here.")
        return "\n".join(lines)


def place_of(file: UPath | str, row: int, *, seen_from: UPath | str | None = None) -> str:
    """Where a row is, in words; without the file's name for who is in that file already."""
    unit = row_unit(str(file))
    return f"{unit} {row}" if file == seen_from else f"{file} {unit} {row}"
