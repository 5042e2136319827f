"""The formats that a user's table may have, told apart by file ending: chunks of its rows.

Every format gives the same: text as it stands in the file, and where in the file it stands. A row
that cannot be read is refused in its chunk; a file that cannot be read is refused as a whole.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable, TableProblem
from mla_ray.data.quoted_tsv import tsv_is_quoted
from mla_ray.data.table_chunk import Chunk
from mla_ray.model.text import fault_of
from mla_ray.runtime.storage import is_file, open_file, patiently

CHUNK = 16_384
"""Rows read at a time; of a table with images `IMAGE_CHUNK`."""
IMAGE_CHUNK = 512


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


def read_chunks(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """The rows of a file, with those of the columns that it has.

    Raises:
        InvalidTable: the file is missing, empty, of no known format, broken, or lacks a column.

    """
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidTable.of_file(path, f"unknown file ending; use one of {known}")
    if not is_file(path):
        raise InvalidTable.of_file(path, "no such file")
    if not patiently(path.stat, what=f"reading {path}").st_size:
        raise InvalidTable.of_file(path, "the file is empty")
    return FORMATS[path.suffix.lower()](path, columns)


# --- Parquet ------------------------------------------------------------------------------------


def _read_parquet(path: UPath, columns: Columns) -> Iterator[Chunk]:
    try:
        with open_file(path) as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            columns.require(path, schema.names)
            present = columns.among(schema.names)
            targets = {name: _parquet_type(path, name, schema.field(name).type) for name in present}
            size, start = IMAGE_CHUNK if "image" in present else CHUNK, 1
            for batch in file.iter_batches(size, columns=present):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)  # finds text that is not UTF-8
                cells = {name: table[name].cast(target) for name, target in targets.items()}
                rows = pa.array(range(start, start + len(batch)), pa.int64())
                start += len(batch)
                yield Chunk(path, pa.table({**cells, "row": rows}))
    except (pa.ArrowException, OSError) as error:
        raise InvalidTable.of_file(path, f"not a sound Parquet file: {error}") from error


def _parquet_type(path: UPath, column: str, kind: pa.DataType) -> pa.DataType:
    """What a column is read as; the table is refused if it holds something else."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column == "image" and _is_binary(kind):
        return pa.large_binary()
    if _is_text(kind) or (column == "image_id" and pa.types.is_integer(kind)):
        return pa.string()
    needed = "bytes or a path" if column == "image" else "text"
    raise InvalidTable.of_file(path, f"column {column!r} holds {kind}; {needed} is needed")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any((types.is_string(kind), types.is_large_string(kind), types.is_null(kind)))


def _is_binary(kind: pa.DataType) -> bool:
    return any((pa.types.is_binary(kind), pa.types.is_large_binary(kind)))


# --- CSV and TSV --------------------------------------------------------------------------------


class _Csv(csv.excel):
    skipinitialspace = True  # `"dog", "Hund"`: the second cell is quoted as well
    strict = True


class _Tsv(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # a quote in a TSV cell is a quote
    strict = True


class _QuotedTsv(csv.excel_tab):
    """As pandas and Excel write TSV (`tsv_is_quoted`)."""

    strict = True


def _read_delimited(path: UPath, columns: Columns) -> Iterator[Chunk]:
    dialect: type[csv.Dialect] = _Csv
    if path.suffix.lower() == ".tsv":
        with _text_lines(path, newline="") as lines:
            dialect = _QuotedTsv if tsv_is_quoted(lines) else _Tsv
    with _text_lines(path, newline="") as lines:
        reader = csv.reader(lines, dialect)
        line = 1
        try:
            header = [name.strip() for name in next(reader, [])]
            columns.require(path, header)
            places = {column: header.index(column) for column in columns.among(header)}
            buffer = _RowBuffer(path)
            line = reader.line_num + 1
            for record in reader:
                if len(record) == len(header):
                    buffer.add(line, {column: record[n] for column, n in places.items()})
                elif record:  # else it is a blank line
                    buffer.faults[line] = (
                        f"{len(record)} fields where the header has {len(header)}; "
                        f"mend the separators, {OR_SKIP}"
                    )
                line = reader.line_num + 1
                if buffer.is_full:
                    yield buffer.chunk(places)
                    buffer = _RowBuffer(path)
            yield buffer.chunk(places)
        except csv.Error as error:
            raise InvalidTable.of_file(
                path,
                f"line {line} can not be read ({error}); double the quotes inside a quoted cell",
            ) from error


# --- JSONL --------------------------------------------------------------------------------------


def _read_jsonl(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """There is no header: a column is there if a row has it, of those before a chunk is full."""
    header: dict[str, None] = {}
    buffer, checked = _RowBuffer(path), False
    with _text_lines(path, newline="\n") as lines:
        for line, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            record = _json_object(text)
            if isinstance(record, str):
                buffer.faults[line] = record
                continue
            header |= dict.fromkeys(record)
            if fault := _json_fault(record, columns.names):
                buffer.faults[line] = fault
            else:
                buffer.add(line, record)
            if buffer.is_full:
                if not checked:
                    columns.require(path, list(header))
                    checked = True
                yield buffer.chunk(columns.among(header))
                buffer = _RowBuffer(path)
    if not checked and (header or not buffer.faults):
        columns.require(path, list(header))
    yield buffer.chunk(columns.among(header))


def _json_object(text: str) -> dict[str, object] | str:
    """The object that a line is, or what is wrong with it."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error}); {OR_SKIP}"
    if not isinstance(record, dict):
        return f"a {type(record).__name__} where an object is needed; {OR_SKIP}"
    if isinstance(number := record.get("image_id"), int) and not isinstance(number, bool):
        record["image_id"] = str(number)
    return record


def _json_fault(record: Mapping[str, object], columns: Iterable[str]) -> str | None:
    for column in columns:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            return f"{column!r} is of type {type(value).__name__}, not text; {OR_SKIP}"
        if value and (fault := fault_of(value)):
            return f"{column!r} {fault}; {OR_SKIP}"
    return None


# --- text files ---------------------------------------------------------------------------------


@dataclass
class _RowBuffer:
    """Rows of a text file that become a chunk."""

    file: UPath
    rows: list[int] = field(default_factory=list)
    records: list[Mapping[str, object]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, record: Mapping[str, object]) -> None:
        self.rows.append(row)
        self.records.append(record)

    @property
    def is_full(self) -> bool:
        return len(self.rows) + len(self.faults) >= CHUNK

    def chunk(self, columns: Iterable[str]) -> Chunk:
        cells = {
            column: pa.array([record.get(column) for record in self.records], pa.string())
            for column in columns
        }
        chunk = Chunk(self.file, pa.table({**cells, "row": pa.array(self.rows, pa.int64())}))
        chunk.refuse(self.faults)
        return chunk


@contextmanager
def _text_lines(path: UPath, newline: str) -> Iterator[Iterable[str]]:
    """The lines of a text file, without its byte order mark."""
    try:
        with open_file(path) as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        line, place = _first_bad_byte(path)
        raise InvalidTable.of_file(
            path,
            f"line {line}, byte {place} of the file, is not UTF-8; save the file as UTF-8, "
            "for example with `iconv -f LATIN1 -t UTF-8`",
        ) from error


def _first_bad_byte(path: UPath) -> tuple[int, int]:
    """Line and offset of the first byte that is not UTF-8; there is one."""
    offset = number = 0
    with open_file(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(line)
    return number, offset


FORMATS: Mapping[str, Callable[[UPath, Columns], Iterator[Chunk]]] = MappingProxyType(
    {
        ".parquet": _read_parquet,
        ".csv": _read_delimited,
        ".tsv": _read_delimited,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
    }
)
"""Readers by file ending, which may be in capitals."""
