"""Helpers for text tables: decompression, UTF-8 decoding, and collection of rows into chunks."""

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
"""Number of rows in a chunk."""
IMAGE_CHUNK = 512
"""Number of rows in a chunk of a table with images."""


def rows_at_a_time(columns: Iterable[str]) -> int:
    """Return the number of rows in a chunk with these columns."""
    return IMAGE_CHUNK if "image" in columns else CHUNK


@contextmanager
def content_of(path: UPath) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes, and decompress it if its ending names a compression.

    Raises:
        InvalidTable: The compressed data is damaged or truncated.

    """
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
        message = f"not valid {packed}, or truncated ({error}); download or compress it again"
        raise InvalidTable.of_file(path, message) from error


@contextmanager
def text_lines(path: UPath, newline: str) -> Iterator[Iterator[str]]:
    """Open the lines of a UTF-8 text file, without its byte order mark.

    Raises:
        InvalidTable: The file is not UTF-8. The message states the place of the first bad byte.

    """
    try:
        with content_of(path) as raw:
            check_encoding(path, raw)
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def check_encoding(path: UPath, raw: io.BufferedReader) -> None:
    """Check that a file does not start as UTF-16 or UTF-32, which Excel and Windows can write.

    Such a file starts with a byte order mark, or with letters that alternate with NUL bytes.

    Raises:
        InvalidTable: The file starts as UTF-16 or UTF-32.

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
    """Create the error for a file with a byte that is not UTF-8, and name its place."""
    line, place = _first_bad_byte(path)
    return InvalidTable.of_file(
        path,
        f"line {line}, byte {place} of the file, is not UTF-8; save the file as UTF-8, "
        "for example with `iconv -f LATIN1 -t UTF-8`",
    )


def _first_bad_byte(path: UPath) -> tuple[int, int]:
    """Return the line and the offset of the first byte that is not UTF-8. The file has one."""
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
    """Buffer for the rows of a chunk.

    Attributes:
        file: File of the rows.
        size: Number of rows in a full buffer, including bad rows.
        rows: Row number of each record.
        records: Values of each record, by column.
        faults: Message for each bad row.

    """

    file: UPath
    size: int = field(default_factory=lambda: CHUNK)
    rows: list[int] = field(default_factory=list)
    records: list[Mapping[str, object]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, record: Mapping[str, object]) -> None:
        """Add a record of a row. A row can have several records."""
        self.rows.append(row)
        self.records.append(record)

    @property
    def is_full(self) -> bool:
        """Whether the buffer holds enough rows for a chunk."""
        return len(self.rows) + len(self.faults) >= self.size

    def chunk(self, columns: Iterable[str]) -> Chunk:
        """Return a chunk with these columns and refuse its bad rows."""
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
    """Row of a file without a header."""

    number: int
    records: Sequence[Mapping[str, object]] | str
    """Records of the row (several pairs, for example), or a message that says what is wrong."""
    names: Iterable[str]
    """Names of the columns in this row."""


def chunks_of(
    path: UPath, columns: Columns, rows: Iterable[Row], size: int | None = None
) -> Iterator[Chunk]:
    """Yield the chunks of a file without a header.

    The file has a column if any row that was read so far has it.

    Args:
        path: Path of the file.
        columns: Columns to read.
        rows: Rows of the file.
        size: Number of rows in a chunk, `CHUNK` by default.

    Raises:
        InvalidTable: The rows of the first chunk lack a required column.

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
