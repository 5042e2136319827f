"""Parquet files at any URL, written whole."""

from collections.abc import Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.runtime.storage import read_bytes, write_bytes


def read_parquet(path: UPath, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a file, of these columns or of all."""
    return pq.read_table(pa.BufferReader(read_bytes(path)), columns=columns)


def write_parquet(
    path: UPath, table: pa.Table, *, dictionary_pagesize_limit: int = 1 << 20
) -> None:
    """Write a table that fits in memory twice; a reader sees nothing, the old file, or all of it.

    Args:
        path: of the file.
        table: any.
        dictionary_pagesize_limit: bytes of a column's distinct values that are each in the file
            once; beyond that they are repeated. The default is Arrow's.

    """
    sink = BytesIO()
    pq.write_table(table, sink, dictionary_pagesize_limit=dictionary_pagesize_limit)
    write_bytes(path, sink.getvalue())
