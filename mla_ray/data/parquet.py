"""Reading and atomic writing of Parquet files at any path or URL."""

from collections.abc import Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.runtime.storage import read_bytes, write_bytes


def read_parquet(path: UPath, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all rows of a file, with the given columns or all columns."""
    return pq.read_table(pa.BufferReader(read_bytes(path)), columns=columns)


def write_parquet(
    path: UPath, table: pa.Table, *, dictionary_pagesize_limit: int = 1 << 20
) -> None:
    """Write a table to a file atomically.

    A reader sees no file, the old file or the complete new file. Memory must hold the table twice.

    Args:
        path: Path of the file.
        table: Table to write.
        dictionary_pagesize_limit: Size limit in bytes of a column's dictionary, which stores each
            distinct value once. Beyond the limit, repeated values are stored repeatedly. The
            default is Arrow's.

    """
    sink = BytesIO()
    pq.write_table(table, sink, dictionary_pagesize_limit=dictionary_pagesize_limit)
    write_bytes(path, sink.getvalue())
