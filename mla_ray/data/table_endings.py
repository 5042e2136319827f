"""Format, compression and row unit of a table file, by the ending of its name."""

from collections.abc import Mapping
from types import MappingProxyType

COMPRESSIONS: Mapping[str, str] = MappingProxyType(
    {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
)
"""Pyarrow's names of the supported compressions, by file ending."""
WITH_LINES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Formats whose row numbers are line numbers. In other formats, rows count from 1."""


def format_of(name: str) -> tuple[str, str | None]:
    """Return the format ending of a file name in lowercase, and its compression or None."""
    name = name.lower()
    packed = COMPRESSIONS.get(_ending(name))
    return _ending(name[: -len(_ending(name))] if packed else name), packed


def row_unit(name: str) -> str:
    """Return the unit of a file's row numbers: `line` (as in an editor) or `row`."""
    return "line" if format_of(name)[0] in WITH_LINES else "row"


def _ending(name: str) -> str:
    name = name.rpartition("/")[2]
    place = name.rfind(".")
    return name[place:] if place > 0 else ""
