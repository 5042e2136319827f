"""Readers of JSON tables: one object per line (JSONL), or one array of objects."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

import ijson
from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import OF_TRANSLATION, TRANSLATION, Columns, pairs_in
from mla_ray.data.table_text import Row, check_encoding, chunks_of, content_of, text_lines
from mla_ray.model.text import fault_of

_SURROGATE = re.compile(rb"\\[uU][dD][89a-fA-F]")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_PIECE = 1 << 20


def read_jsonl(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a JSONL file in chunks. Row numbers are line numbers."""
    yield from chunks_of(path, columns, _rows(columns, _lines(path)))


def read_json(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a JSON file in chunks.

    The file is an array of objects, and rows count from 1. A file with one object per line is read
    as JSONL, even if its ending is `.json`.

    Raises:
        InvalidTable: The file has another structure, or it is truncated.

    """
    with content_of(path) as raw:
        check_encoding(path, raw)
        start = raw.peek(_PIECE).lstrip(_BLANK)[:1]
    if start == b"[":
        yield from chunks_of(path, columns, _rows(columns, _items(path)))
        return
    with text_lines(path, newline="\n") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        raise InvalidTable.of_file(
            path,
            "is neither an array of rows nor one row per line; `jq -c '.data[]'` writes JSONL, "
            "where `data` is the key of the rows",
        ) from error
    yield from read_jsonl(path, columns)


Found = Iterator[tuple[int, object]]
"""Row numbers, each with its object or with a string that says what is wrong with the row."""


def _rows(columns: Columns, found: Found) -> Iterator[Row]:
    for number, value in found:
        names = list(value) if isinstance(value, dict) else []
        if columns.in_translation(names):
            names += OF_TRANSLATION
        yield Row(number, _records(value, columns), names)


def _lines(path: UPath) -> Found:
    with text_lines(path, newline="\n") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError) as error:
                    yield number, f"not JSON ({error}); {OR_SKIP}"


def _items(path: UPath) -> Found:
    # yajl replaces a lone surrogate by a question mark. ijson's Python parser keeps it, so that the
    # row can be refused.
    backend = ijson.get_backend("python") if _may_hold_halves(path) else ijson
    number = 0
    try:
        with content_of(path) as raw:
            mark = raw.peek(3)[:3]
            if mark == _BLANK[:3]:
                raw.read(3)
            for number, found in enumerate(backend.items(raw, "item", use_float=True), start=1):
                yield number, found if isinstance(found, dict) else _no_object(found)
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise InvalidTable.of_file(
            path, f"not JSON, or truncated, after row {number} ({said:.100})"
        ) from error


def _may_hold_halves(path: UPath) -> bool:
    with content_of(path) as raw:
        end = b""
        while piece := raw.read(_PIECE):
            if _SURROGATE.search(end + piece):
                return True
            end = piece[-4:]
    return False


def _records(found: object, columns: Columns) -> list[dict[str, object]] | str:
    """Convert an object to rows: one row, or one pair for each language.

    Returns:
        The rows, or a message that says what is wrong with the object.

    """
    if isinstance(found, str):
        return found
    if not isinstance(found, dict):
        return _no_object(found)
    if columns.in_translation(found):
        pairs = pairs_in(found[TRANSLATION])
        records: list[dict[str, object]] | str = (
            pairs if isinstance(pairs, str) else [{**found, **pair} for pair in pairs]
        )
    else:
        records = [found]
    if not isinstance(records, str):
        for record in records:
            number = record.get("image_id")
            if isinstance(number, int) and not isinstance(number, bool):
                record["image_id"] = str(number)
            if fault := _json_fault(record, columns.names):
                return fault
    return records


def _no_object(found: object) -> str:
    return f"a {type(found).__name__} where an object is needed; {OR_SKIP}"


def _json_fault(record: Mapping[str, object], columns: Iterable[str]) -> str | None:
    for column in columns:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            return f"{column!r} is of type {type(value).__name__}, not text; {OR_SKIP}"
        if value and (fault := fault_of(value)):
            return f"{column!r} {fault}; {OR_SKIP}"
    return None
