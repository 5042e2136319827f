"""Text files that hold tables: unpacked, as UTF-8, their rows gathered to chunks."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import pyarrow as pa
from upath import UPath

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import Columns
from mla_ray.data.table_endings import format_of
from mla_ray.runtime.storage import open_file

CHUNK = 16_384
"""Rows read at a time."""
IMAGE_CHUNK = 512
"""Of a table with images."""


def rows_at_a_time(columns: Iterable[str]) -> int:
    """Rows of a chunk that has these columns."""
    return IMAGE_CHUNK if "image" in columns else CHUNK


@contextmanager
def content_of(path: UPath) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked if its ending says that it is packed."""
    _, packed = format_of(path.name)
    try:
        with open_file(path) as raw:
            if packed:
                yield io.BufferedReader(pa.CompressedInputStream(raw, packed))
            else:
                yield io.BufferedReader(cast("io.RawIOBase", raw))
    except (OSError, pa.ArrowException) as error:
        if packed is None:
            raise
        message = f"not sound {packed}, or broken off ({error}); fetch or pack it anew"
        raise InvalidTable.of_file(path, message) from error


@contextmanager
def text_lines(path: UPath, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a text file, without its byte order mark."""
    try:
        with content_of(path) as raw:
            check_encoding(path, raw)
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def check_encoding(path: UPath, raw: io.BufferedReader) -> None:
    """Raise `InvalidTable` of a file that begins as UTF-16 or UTF-32, as Excel and Windows write.

    It has their byte order mark, or letters with NULs between them.
    """
    start = raw.peek(4)[:4]
    letters = [bool(byte) for byte in start]
    name = None
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        name = "UTF-32"
    elif start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        name = "UTF-16"
    elif letters == [True, False, True, False]:
        name = "UTF-16LE"
    elif letters == [False, True, False, True]:
        name = "UTF-16BE"
    if name:
        remedy = f"save the file as UTF-8, for example with `iconv -f {name} -t UTF-8`"
        raise InvalidTable.of_file(path, f"is {name}; {remedy}")


def _not_utf8(path: UPath) -> InvalidTable:
    """For a file that holds a byte which is not UTF-8; says where."""
    line, place = _first_bad_byte(path)
    return InvalidTable.of_file(
        path,
        f"line {line}, byte {place} of the file, is not UTF-8; save the file as UTF-8, "
        "for example with `iconv -f LATIN1 -t UTF-8`",
    )


def _first_bad_byte(path: UPath) -> tuple[int, int]:
    """Line and offset of the first byte that is not UTF-8; there is one."""
    offset = number = 0
    with content_of(path) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, offset + error.start
            offset += len(line)
    return number, offset


@dataclass
class RowBuffer:
    """Rows of a file that become a chunk."""

    file: UPath
    size: int = field(default_factory=lambda: CHUNK)
    rows: list[int] = field(default_factory=list)
    records: list[Mapping[str, object]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, record: Mapping[str, object]) -> None:
        self.rows.append(row)
        self.records.append(record)

    @property
    def is_full(self) -> bool:
        return len(self.rows) + len(self.faults) >= self.size

    def chunk(self, columns: Iterable[str]) -> Chunk:
        cells = {
            column: pa.array([record.get(column) for record in self.records], self._type(column))
            for column in columns
        }
        chunk = Chunk(self.file, pa.table({**cells, "row": pa.array(self.rows, pa.int64())}))
        chunk.refuse(self.faults)
        return chunk

    def _type(self, column: str) -> pa.DataType:
        is_bytes = column == "image" and any(
            isinstance(record.get(column), bytes) for record in self.records
        )
        return pa.large_binary() if is_bytes else pa.string()


class Row(NamedTuple):
    """What a row of a file without a header says."""

    number: int
    records: Sequence[Mapping[str, object]] | str
    """Its records, which may be several pairs; or what is wrong with it."""
    names: Iterable[str]
    """Columns that the file has by what this row shows."""


def chunks_of(
    path: UPath, columns: Columns, rows: Iterable[Row], size: int | None = None
) -> Iterator[Chunk]:
    """Chunks of a file without a header.

    A column is there if a row has it, of those before a chunk is full. A file that lacks one is an
    `InvalidTable`.
    """
    size, header, is_checked = size or CHUNK, dict[str, None](), False
    buffer = RowBuffer(path, size)
    for number, records, names in rows:
        header |= dict.fromkeys(names)
        if isinstance(records, str):
            buffer.faults[number] = records
        else:
            for record in records:
                buffer.add(number, record)
        if buffer.is_full:
            if not is_checked:
                columns.require(path, list(header))
                is_checked = True
            yield buffer.chunk(columns.among(header))
            buffer = RowBuffer(path, size)
    if not is_checked and (header or not buffer.faults):
        columns.require(path, list(header))
    yield buffer.chunk(columns.among(header))
