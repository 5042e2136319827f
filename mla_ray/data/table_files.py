"""Files of a table that is a folder, in order."""

import json
import re
from typing import Any

from upath import UPath

from mla_ray.data.problems import InvalidTable
from mla_ray.runtime.storage import is_file, patiently, read_bytes

SAVED = "state.json"
"""File that `datasets.Dataset.save_to_disk` writes beside the Arrow files."""
SPLITS = "dataset_dict.json"
"""File that `datasets.DatasetDict.save_to_disk` writes beside the folders of the splits."""


def files_of_table(path: UPath) -> list[UPath]:
    """Return the files of a table: the path itself, or the files in a folder.

    A folder can hold Parquet files, WebDataset shards, or a table saved by the library `datasets`.
    Parquet files with the names of shards are ignored, because img2dataset writes them without the
    images.

    Raises:
        InvalidTable: The folder holds several splits, or a file of `datasets` is damaged.

    """

    def parts(ending: str) -> list[UPath]:
        found = patiently(lambda: list(path.glob(f"*{ending}")), what=f"listing {path}")
        return sorted(found, key=_numbers_by_size)

    if not patiently(path.is_dir, what=f"looking for {path}"):
        return [path]
    if is_file(path / SPLITS):
        splits = ", ".join(str(path / name) for name in _json(path / SPLITS, "splits"))
        raise InvalidTable.of_file(path, f"holds several tables; give one of {splits}")
    if is_file(path / SAVED):
        return [path / str(file["filename"]) for file in _json(path / SAVED, "_data_files")]
    shards, tables = parts(".tar"), parts(".parquet")
    if {table.stem for table in tables} <= {shard.stem for shard in shards}:
        tables = shards
    return tables or [path]


def _json(path: UPath, member: str) -> list[Any]:
    """Return a list from one of the JSON files that `datasets` writes."""
    try:
        members = json.loads(read_bytes(path))[member]
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidTable.of_file(path, f"not as `datasets` writes it ({error!r})") from error
    return list(members)


def _numbers_by_size(path: UPath) -> list[tuple[int, str]]:
    """Return a sort key that places part_2 before part_10."""
    pieces = re.split("([0-9]+)", path.name)  # text and numbers alternate
    return [(int(piece), "") if place % 2 else (0, piece) for place, piece in enumerate(pieces)]
