"""Problems in a user's tables, reported by row with their place and remedy."""

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
    """Problem in a table, and its place.

    Attributes:
        file: File of the problem.
        row: Row of the problem, counted as `row_unit` says. None for a problem of the whole file.
        message: What is wrong and what to do.

    """

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.row is None else place_of(self.file, self.row)
        return f"{place}: {self.message}"


class InvalidTable(ValueError):
    """Error for a table that is refused.

    Args:
        problems: Problems of the table, or the first of them if there are very many.
        count: Number of all problems, if `problems` does not hold all.

    """

    def __init__(self, problems: Sequence[TableProblem], count: int | None = None) -> None:
        super().__init__(problems, count)
        self.problems = list(problems)
        self.count = len(self.problems) if count is None else count

    @classmethod
    def of_file(cls, file: UPath | str | Path, message: str) -> "InvalidTable":
        """Create the error for a problem of a whole file."""
        return cls([TableProblem(str(file), None, message)])

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if (more := self.count - len(lines)) > 0:
            lines.append(f"… and {more} more")
        if all(problem.row is not None for problem in self.problems):
            lines.append(f"Fix the rows, or pass --skip-invalid to leave out {self.count}.")
        else:
            lines.append("Fix the file; --skip-invalid does not help here.")
        return "\n".join(lines)


def place_of(file: UPath | str, row: int, *, seen_from: UPath | str | None = None) -> str:
    """Return the place of a row as text, for example `pairs.csv line 3`.

    The file name is left out if `seen_from` is the same file.
    """
    unit = row_unit(str(file))
    return f"{unit} {row}" if file == seen_from else f"{file} {unit} {row}"
