"""Readers of Arrow's formats: Parquet files, and the Arrow files that `datasets` saves."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import OF_TRANSLATION, TRANSLATION, Columns, pairs_in
from mla_ray.data.table_text import RowBuffer, rows_at_a_time
from mla_ray.runtime.storage import open_file


def read_parquet(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a Parquet file in chunks. Rows count from 1.

    Raises:
        InvalidTable: The file is damaged, lacks a column, or has a column of a wrong type.

    """
    try:
        with open_file(path) as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            present = _present(path, columns, schema.names)
            batches = file.iter_batches(rows_at_a_time(present), columns=present)
            yield from _chunks(path, columns, schema, batches)
    except (pa.ArrowException, OSError) as error:
        raise InvalidTable.of_file(path, f"not a valid Parquet file: {error}") from error


def read_arrow(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of an Arrow file in chunks. Rows count from 1.

    The file has Arrow's stream format, which `datasets` writes, or Arrow's file format.

    Raises:
        InvalidTable: The file is damaged, lacks a column, or has a column of a wrong type.

    """
    try:
        with open_file(path) as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            if is_file:
                reader = pa.ipc.open_file(raw)
                batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
                yield from _arrow_chunks(path, columns, reader.schema, batches)
            else:
                with pa.ipc.open_stream(raw) as stream:
                    yield from _arrow_chunks(path, columns, stream.schema, stream)
    except (pa.ArrowException, OSError) as error:
        raise InvalidTable.of_file(path, f"not a valid Arrow file: {error}") from error


def _arrow_chunks(
    path: UPath, columns: Columns, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[Chunk]:
    present = _present(path, columns, schema.names)
    size = rows_at_a_time(present)
    parts = (
        batch.select(present).slice(start, size)
        for batch in batches
        for start in range(0, len(batch), size)
    )
    yield from _chunks(path, columns, schema, parts)


def _present(path: UPath, columns: Columns, header: list[str]) -> list[str]:
    """Return the columns of a file to read."""
    if columns.in_translation(header):
        columns.require(path, [*header, *OF_TRANSLATION])
        return [*columns.among(header), TRANSLATION]
    columns.require(path, header)
    return columns.among(header)


def _chunks(
    path: UPath, columns: Columns, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[Chunk]:
    start = 1
    types: dict[str, pa.DataType] = {}
    for batch in batches:
        if not types:
            names = [name for name in batch.schema.names if name != TRANSLATION]
            types = {name: _type_of(path, name, schema.field(name).type) for name in names}
        table = pa.Table.from_batches([batch])
        table.validate(full=True)  # raises on text that is not UTF-8
        rows = range(start, start + len(batch))
        start += len(batch)
        if TRANSLATION in table.column_names:
            yield _pairs(path, columns, table, rows)
        else:
            cells = {name: _cells(table[name]).cast(kind) for name, kind in types.items()}
            yield Chunk(path, pa.table({**cells, "row": pa.array(rows, pa.int64())}))


def _pairs(path: UPath, columns: Columns, table: pa.Table, rows: range) -> Chunk:
    buffer = RowBuffer(path)
    for row, texts in zip(rows, table[TRANSLATION].to_pylist(), strict=True):
        pairs = pairs_in(dict(texts) if isinstance(texts, list) else texts)  # a list is a map
        if isinstance(pairs, str):
            buffer.faults[row] = pairs
        else:
            for pair in pairs:
                buffer.add(row, pair)
    return buffer.chunk(columns.among(OF_TRANSLATION))


def _type_of(path: UPath, column: str, kind: pa.DataType) -> pa.DataType:
    """Return the type to read a column as, or raise `InvalidTable` if its own type is wrong."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if column == "image" and (_is_binary(kind) or _is_image_struct(kind)):
        return pa.large_binary()
    if _is_text(kind) or (column == "image_id" and pa.types.is_integer(kind)):
        return pa.string()
    needed = "bytes or a path" if column == "image" else "text"
    raise InvalidTable.of_file(path, f"column {column!r} holds {kind}; {needed} is needed")


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column, with only the bytes of images that `datasets` stores with their paths."""
    return pc.struct_field(column, "bytes") if _is_image_struct(column.type) else column


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and "bytes" in kind.names and _is_binary(kind["bytes"].type)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_one(kind)
        for is_one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    )


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        is_one(kind) for is_one in (types.is_binary, types.is_large_binary, types.is_binary_view)
    )
