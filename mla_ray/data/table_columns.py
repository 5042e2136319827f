"""Which columns of a user's table are read, and the shapes in which pairs of languages come."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable, TableProblem

TRANSLATION = "translation"
"""The column of texts by language, `{"en": "dog", "de": "Hund"}`, in which `datasets` has pairs."""
OF_TRANSLATION = ("source", "target", "language")


@dataclass(frozen=True)
class Columns:
    """What is read of a table: column names, and what a missing column is filled with."""

    names: Sequence[str]
    defaults: Mapping[str, str | None]

    def require(self, path: UPath, header: Sequence[str]) -> None:
        """Raise `InvalidTable` if a file with this header lacks a column, or has one twice."""
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
        """Those that a file with this header has."""
        names = set(header)
        return [column for column in self.names if column in names]

    def in_translation(self, header: Iterable[str]) -> bool:
        """Whether a table with this header has its pairs in the one column `translation`."""
        names = {*header}
        wanted = names.isdisjoint(OF_TRANSLATION) and not {*self.names}.isdisjoint(OF_TRANSLATION)
        return wanted and TRANSLATION in names


def pairs_in(texts: object) -> Iterator[dict[str, str]] | str:
    """A cell of `translation` as pairs, one for every other language; or what is wrong with it."""
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
