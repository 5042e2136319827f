"""What the ending of a table's name says: format, packing, how its rows are counted."""

from collections.abc import Mapping
from types import MappingProxyType

COMPRESSIONS: Mapping[str, str] = MappingProxyType(
    {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
)
"""What pyarrow unpacks, by file ending."""
WITH_LINES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Formats whose rows are told by their lines; those of others are counted from 1."""


def format_of(name: str) -> tuple[str, str | None]:
    """The ending of a file's name that tells its format, in small letters, and how it is packed."""
    name = name.lower()
    packed = COMPRESSIONS.get(_ending(name))
    return _ending(name[: -len(_ending(name))] if packed else name), packed


def row_unit(name: str) -> str:
    """What the number of a row counts: an editor's lines, or rows."""
    return "line" if format_of(name)[0] in WITH_LINES else "row"


def _ending(name: str) -> str:
    name = name.rpartition("/")[2]
    place = name.rfind(".")
    return name[place:] if place > 0 else ""
