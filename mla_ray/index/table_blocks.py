"""Rows of caption tables as blocks of Ray Data, and a survey of tables before they are encoded.

Read tasks import this module. It does not import torch and open_clip, which takes many seconds.
"""

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import DataContext, TaskPoolStrategy
from upath import UPath

from mla_ray.data.table_reader import Stream

READERS = 2
"""Number of concurrent read tasks."""

BLOCK_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "content": pa.large_binary(),  # bytes of the image, if they are in the table
        "uri": pa.string(),  # path or URL of the image otherwise
        "folder": pa.string(),  # folder of the table
        "language": pa.string(),
        "caption": pa.string(),
        "place": pa.string(),  # file and row
        "fault": pa.string(),  # fault of an invalid row; its other columns are null
    }
)


class BlockRow(NamedTuple):
    """Valid row of a block, with the columns of `BLOCK_SCHEMA`."""

    image_id: str
    content: bytes | None
    uri: str | None
    folder: str
    language: str
    caption: str
    place: str

    @property
    def image(self) -> bytes | str:
        """The image as in a caption table: its bytes, or its path or URL."""
        return self.content if self.content is not None else self.uri or ""

    @classmethod
    def all_of(cls, block: pa.Table) -> "list[BlockRow]":
        """Return the valid rows of a block."""
        sound = block.filter(pc.is_null(block["fault"]))
        columns = (sound[name].to_pylist() for name in cls._fields)
        return list(starmap(cls, zip(*columns, strict=True)))


def read_blocks(
    tables: Sequence[str],
    language: str | None,
    languages: Collection[str],
    wanted: Collection[str],
) -> ray.data.Dataset:
    """Return a dataset of the rows of tables, with `BLOCK_SCHEMA`; each task reads one file.

    Args:
        tables: Caption tables or folders of Parquet files, as paths or URLs.
        language: Language of tables without a column `language`.
        languages: Languages that rows are read as, as for `data.table_reader.Stream`.
        wanted: Languages of the rows to return.

    """
    # Not "ray.data" itself, because Ray resets its level before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # for small tables
    files = [pa.table({"file": [str(file)]}) for file in _files(tables)]
    # Read tasks reserve no core: while actors hold all cores, a task would wait for one forever.
    return ray.data.from_arrow(files).map_batches(
        _rows_of,
        fn_kwargs={
            "language": language,
            "languages": sorted(languages),
            "wanted": sorted(wanted),
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=READERS),
        num_cpus=0,
    )


def _files(tables: Sequence[str]) -> list[UPath]:
    return Stream.captions(tables).files


def _rows_of(
    files: pa.Table, language: str | None, languages: Sequence[str], wanted: Sequence[str]
) -> Iterator[pa.Table]:
    for file in files["file"].to_pylist():
        stream = Stream.captions([file], language, languages=languages)
        folder = str(stream.files[0].parent)
        for chunk in stream:
            rows = chunk.filter(pc.is_in(chunk["language"], pa.array(wanted, pa.string())))
            inside = pa.types.is_large_binary(rows["image"].type)
            nothing = pa.nulls(len(rows))
            yield pa.table(
                {
                    "image_id": rows["image_id"],
                    "content": rows["image"] if inside else nothing,
                    "uri": nothing if inside else rows["image"],
                    "folder": pa.array([folder] * len(rows)),
                    "language": rows["language"],
                    "caption": rows["caption"],
                    "place": pa.array([stream.place(0, row) for row in rows["row"].to_pylist()]),
                    "fault": nothing,
                }
            ).cast(BLOCK_SCHEMA)
        faults = [str(problem) for problem in stream.problems]
        faults += [f"{file}: a row like these"] * (stream.refused - len(faults))
        yield pa.Table.from_pylist([{"fault": fault} for fault in faults], BLOCK_SCHEMA)


def survey(
    tables: Sequence[str], language: str | None, known: Collection[str]
) -> tuple[set[str], int]:
    """Return the languages in `tables` and the number of rows, without reading whole tables.

    Reads the column `language` of every file, and enough of the others to check that they exist.

    Args:
        tables: Caption tables or folders of Parquet files, as paths or URLs.
        language: Language of tables without a column `language`.
        known: Languages that rows are read as, as for `data.table_reader.Stream`.

    Raises:
        InvalidTable: A table does not exist, cannot be read or lacks a column.

    """
    languages: set[str] = set()
    rows = 0
    for file in map(str, _files(tables)):
        next(iter(Stream.captions([file], language, languages=known)), None)
        stream = Stream.languages([file], language, known)
        for chunk in stream:
            languages.update(pc.unique(chunk["language"]).to_pylist())
        rows += stream.rows + stream.refused
    return languages, rows
