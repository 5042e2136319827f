"""Columns that are read from a user's table, and the layouts of translation pairs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable, TableProblem

TRANSLATION = "translation"
"""Column in which `datasets` stores pairs, as texts by language: `{"en": "dog", "de": "Hund"}`."""
OF_TRANSLATION = ("source", "target", "language")
"""Columns that are made from the column `translation`."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read, and default values of the columns that can be missing."""

    names: Sequence[str]
    defaults: Mapping[str, str | None]

    def require(self, path: UPath, header: Sequence[str]) -> None:
        """Check the header of a file.

        Raises:
            InvalidTable: A column is missing and has no default, or occurs more than once.

        """
        problems = []
        for column in self.names:
            if (count := header.count(column)) > 1:
                problems.append(
                    TableProblem(str(path), None, f"there are {count} columns {column!r}")
                )
            if column not in header and column not in self.defaults:
                lower = {name.lower(): name for name in header}
                near = get_close_matches(column, lower, n=1)
                hint = f"; is it {lower[near[0]]!r}? Rename it to {column!r}" if near else ""
                listed = ", ".join(repr(name) for name in header) or "none"
                message = f"no column {column!r}; found {listed}{hint}"
                problems.append(TableProblem(str(path), None, message))
        if problems:
            raise InvalidTable(problems)

    def among(self, header: Iterable[str]) -> list[str]:
        """Return those of the columns that are in a header."""
        names = set(header)
        return [column for column in self.names if column in names]

    def in_translation(self, header: Iterable[str]) -> bool:
        """Return whether a table with this header has its pairs in the column `translation`."""
        names = {*header}
        wanted = names.isdisjoint(OF_TRANSLATION) and not {*self.names}.isdisjoint(OF_TRANSLATION)
        return wanted and TRANSLATION in names


def pairs_in(texts: object) -> Iterator[dict[str, str]] | str:
    """Convert a cell of the column `translation` to pairs of English and each other language.

    Returns:
        The pairs, or a message that says what is wrong with the cell.

    """
    if not isinstance(texts, Mapping):
        return (
            f"{TRANSLATION!r} is of type {type(texts).__name__}, not texts by language; {OR_SKIP}"
        )
    given = {code: text for code, text in texts.items() if text is not None}
    for code, text in given.items():
        if not isinstance(text, str):
            return f"{TRANSLATION!r} {code!r} is of type {type(text).__name__}, not text; {OR_SKIP}"
    english = [code for code in given if _is_english(code)]
    if len(english) != 1 or len(given) == 1:
        listed = ", ".join(given) or "nothing"
        return f"{TRANSLATION!r} has {listed}; English and another are needed; {OR_SKIP}"
    source = given.pop(english[0])
    return (
        {"source": source, "target": text, "language": code.replace("_", "-")}
        for code, text in given.items()
    )


def _is_english(code: str) -> bool:
    return code.lower().replace("_", "-").partition("-")[0] in ("en", "eng")
