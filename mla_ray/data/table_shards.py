"""Reader of WebDataset shards, as img2dataset writes them.

Files with the same name in a tar file form one row: `000.jpg` is its image, `000.txt` is its
caption, and `000.json` is an object with more columns. The library webdataset reads the same format
but shuffles. This reader keeps the order of one file.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from upath import UPath

from mla_ray.data.problems import OR_SKIP, InvalidTable
from mla_ray.data.table_chunk import Chunk
from mla_ray.data.table_columns import Columns
from mla_ray.data.table_text import Row, chunks_of, content_of, rows_at_a_time
from mla_ray.model.text import fault_of

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".tif", ".tiff")
OF_JSON = ("image_id", "caption", "language", "split")


def read_shard(path: UPath, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a shard in chunks. Rows count from 1.

    The image id of a row is the name of its files without the ending, unless the JSON has an
    `image_id`.

    Raises:
        InvalidTable: The file is not a tar file, is truncated, or lacks a column.

    """
    try:
        yield from chunks_of(path, columns, _rows(path), rows_at_a_time(["image"]))
    except tarfile.TarError as error:
        raise InvalidTable.of_file(path, f"not a tar file, or truncated ({error})") from error


def _rows(path: UPath) -> Iterator[Row]:
    for number, record in enumerate(_records(path), start=1):
        fault = record.pop("fault", None)
        yield Row(number, fault if isinstance(fault, str) else [record], record)


def _records(path: UPath) -> Iterator[dict[str, object]]:
    """Yield the record of each name. The files of a name must follow one another."""
    key, record = "", dict[str, object]()
    with content_of(path) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            name = PurePosixPath(member.name)
            if file is None or name.name.startswith("."):
                continue
            stem, _, ending = name.name.partition(".")
            if (of := str(name.parent / stem)) != key:
                if record:
                    yield record
                key, record = of, {"image_id": of}
            _put(record, f".{ending.lower()}", file.read())
    if record:
        yield record


def _put(record: dict[str, object], ending: str, content: bytes) -> None:
    """Add a file to the record of its row. A problem is stored under the key `fault`."""
    try:
        if ending in IMAGES:
            record["image"] = content
        elif ending == ".txt":
            record["caption"] = content.decode()
        elif ending == ".json" and isinstance(given := json.loads(content), dict):
            for column in OF_JSON:
                value = str(given[column]) if type(given.get(column)) is int else given.get(column)
                if isinstance(value, str) and (column == "image_id" or column not in record):
                    record[column] = value
        for column, value in record.items():
            if isinstance(value, str) and (fault := fault_of(value)):
                raise ValueError(f"{column!r} {fault}")
    except (ValueError, RecursionError) as error:
        record["fault"] = f"{ending[1:]} cannot be read ({error}); {OR_SKIP}"
