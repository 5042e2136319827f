"""Tables that were read and checked, cut into blocks that are still on this machine.

A table is streamed through a scratch file, which is cut into blocks, so that memory is bounded by a
block whatever the number of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from upath import UPath

from mla_ray.data.blocks import BLOCK, IMAGES, ScratchTable, cut
from mla_ray.data.corpus import Corpus, Stage
from mla_ray.data.feature_store import hashes, key_of
from mla_ray.data.problems import InvalidTable, TableProblem
from mla_ray.data.table_images import find_image
from mla_ray.data.table_reader import Stream
from mla_ray.runtime.storage import as_path, read_bytes
from mla_ray.training.run_spec import stream_of

PhaseProgress = Callable[[str, int], None]
"""Called with what is done and how many rows of it so far."""

ROWS = pa.schema(
    {"key": pa.string(), "source": pa.string(), "target": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)
"""`source` is what may not repeat beside the same `target`: the English text, or the image's id."""
CONTENTS = pa.schema(
    {"key": pa.string(), "content": pa.large_binary(), "uri": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)


@dataclass
class Draft:
    """A table that was read and checked: its blocks, still on this machine.

    Attributes:
        language: of its texts.
        name: of the table in its run.
        stage: that it is for.
        stream: that it was read by, with the problems of rows that were left out.
        blocks: rows (`ROWS`), each block with the bits that its keys begin with.
        contents: what is to be encoded (`CONTENTS`), in the same way.

    """

    language: str
    name: str
    stage: Stage
    stream: Stream
    blocks: list[tuple[str, ScratchTable]]
    contents: list[tuple[str, ScratchTable]]

    @property
    def rows(self) -> int:
        return sum(block.rows for _, block in self.blocks)

    def sample(self, count: int) -> pa.Table:
        """The first rows in the order of hashes: as good as a draw, and always the same."""
        parts: list[pa.Table] = []
        for _, block in self.blocks:
            table = block.read()
            order = np.argsort(hashes(table["key"].to_pylist()), kind="stable")[:count]
            parts.append(table.take(order))
            count -= len(order)
            if not count:
                break
        return pa.concat_tables(parts)


def read_drafts(
    corpora: Sequence[Corpus], scratch: Path, skip_invalid: bool, progress: PhaseProgress
) -> list[Draft]:
    """All tables; what is wrong with any of them is told at once."""
    drafts: list[Draft] = []
    problems: list[TableProblem] = []
    refused = 0
    for corpus in corpora:
        for name, stage, table in corpus.tables():
            try:
                draft = read_draft(corpus, name, stage, table, scratch, skip_invalid, progress)
                drafts.append(draft)
            except InvalidTable as invalid:
                problems += invalid.problems
                refused += invalid.count
    if problems:
        raise InvalidTable(problems, refused)
    return drafts


def read_draft(
    corpus: Corpus,
    name: str,
    stage: Stage,
    table: str | Path,
    scratch: Path,
    skip_invalid: bool,
    progress: PhaseProgress = lambda phase, rows: None,
    split: str = "train",
) -> Draft:
    """One table of a corpus, or one split of it."""
    stream = stream_of(corpus, stage, table, split)
    folder = scratch / corpus.language / name
    folder.mkdir(parents=True)
    rows = ScratchTable(folder / "rows", ROWS)
    contents = ScratchTable(folder / "contents", CONTENTS)
    read = _pairs if stage == "nlt" else _captions
    for piece in stream:
        keyed, content = read(piece, stream)
        rows.add(keyed)
        contents.add(content)
        progress(f"reading {corpus.language}", stream.rows)
    once = [(prefix, _without_repeats(block, stream)) for prefix, block in cut(rows, BLOCK)]
    blocks = [(prefix, block) for prefix, block in once if block.rows]
    limit = IMAGES if stage == "le" else BLOCK
    draft = Draft(corpus.language, name, stage, stream, blocks, list(cut(contents, limit)))
    stream.check(draft.rows, skip_invalid)
    return draft


def _pairs(piece: pa.Table, stream: Stream) -> tuple[pa.Table, pa.Table]:
    keys = pa.array([key_of(source) for source in piece["source"].to_pylist()], pa.string())
    rows = piece.append_column("key", keys).select(ROWS.names).cast(ROWS)
    content = pa.table(
        {
            "key": keys,
            "content": piece["source"].cast(pa.large_binary()),
            "uri": pa.nulls(len(keys), pa.string()),
            "file": piece["file"],
            "row": piece["row"],
        },
        CONTENTS,
    )
    return rows, content


def _captions(piece: pa.Table, stream: Stream) -> tuple[pa.Table, pa.Table]:
    """Images by their bytes; one at a path or URL is read here for its key, and again to encode."""
    inline = pa.types.is_large_binary(piece["image"].type)
    key_at = lru_cache(1024)(_key_at)  # an image has several captions, one after another
    keys: list[str | None] = []
    uris: list[str | None] = []
    for image, file, row in zip(
        *(piece[name].to_pylist() for name in ("image", "file", "row")), strict=True
    ):
        key: str | None = key_of(image) if inline else None
        uri: str | None = None
        if not inline:
            try:
                key, uri = key_at(image, stream.files[file].parent)
            except ValueError as error:
                stream.refuse(file, row, f"image {image!r} {error}")
        keys.append(key)
        uris.append(uri)
    sound = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "source": piece["image_id"],
            "target": piece["caption"],
            "content": piece["image"] if inline else pa.nulls(len(piece), pa.large_binary()),
            "uri": pa.array(uris, pa.string()),
            "file": piece["file"],
            "row": piece["row"],
        }
    ).filter(pa.array([key is not None for key in keys]))
    return sound.select(ROWS.names), first_of_each_key(sound.select(CONTENTS.names))


def _key_at(uri: str, folder: UPath) -> tuple[str, str]:
    path = find_image(uri, folder)
    return key_of(read_bytes(path)), str(as_path(path))


def _without_repeats(block: ScratchTable, stream: Stream) -> ScratchTable:
    """The block without rows that say the same; all that do are in it."""
    table = block.read()
    kept = stream.refuse_repeats(table, ("source", "target"), {})
    return block if len(kept) == len(table) else replaced(block, kept)


def replaced(block: ScratchTable, rows: pa.Table) -> ScratchTable:
    """The block anew, with these rows alone."""
    block.delete()
    kept = ScratchTable(block.path, block.schema)
    kept.add(rows)
    kept.close()
    return kept


def first_of_each_key(table: pa.Table) -> pa.Table:
    """The first row of each key."""
    seen: set[str] = set()
    keep = []
    for key in table["key"].to_pylist():
        keep.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(keep, pa.bool_()))
