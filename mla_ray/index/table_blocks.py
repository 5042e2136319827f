"""Rows of caption tables as blocks of Ray Data, and what there is to know of them beforehand.

Imports neither torch nor open_clip, which takes many seconds: tasks that only read import this.
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
"""Tasks at a time."""

BLOCK_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "content": pa.large_binary(),  # of an image whose bytes are in the table
        "uri": pa.string(),  # of one that is elsewhere
        "folder": pa.string(),  # of the table
        "language": pa.string(),
        "caption": pa.string(),
        "place": pa.string(),  # file and row
        "fault": pa.string(),  # of a row that is no use; the columns above are null then
    }
)


class BlockRow(NamedTuple):
    """A row of a block that is of use, with the columns of `BLOCK_SCHEMA`."""

    image_id: str
    content: bytes | None
    uri: str | None
    folder: str
    language: str
    caption: str
    place: str

    @property
    def image(self) -> bytes | str:
        """As a caption table has it: bytes, or where they are."""
        return self.content if self.content is not None else self.uri or ""

    @classmethod
    def all_of(cls, block: pa.Table) -> "list[BlockRow]":
        sound = block.filter(pc.is_null(block["fault"]))
        columns = (sound[name].to_pylist() for name in cls._fields)
        return list(starmap(cls, zip(*columns, strict=True)))


def read_blocks(
    tables: Sequence[str],
    language: str | None,
    languages: Collection[str],
    wanted: Collection[str],
) -> ray.data.Dataset:
    """The rows of tables as `BLOCK_SCHEMA` has them; a task reads a file."""
    # Not "ray.data" itself: Ray sets that one anew before every execution.
    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # of small tables
    files = [pa.table({"file": [str(file)]}) for file in _files(tables)]
    # Reading takes no core: a task that waits for one while actors hold them all waits for ever.
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
    """Languages in `tables`, read as those that are known, and rows.

    Reads that one column, and of every file as much of the others as tells that they are there.
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
