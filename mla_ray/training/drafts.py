"""Tables that were read and validated, cut into blocks on the local disk.

A table is streamed into a scratch file, which is then cut into blocks. Memory is bounded by one
block, for any number of rows.
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
from mla_ray.data.keys import hashes, key_of
from mla_ray.data.problems import InvalidTable, TableProblem
from mla_ray.data.table_images import find_image
from mla_ray.data.table_reader import Stream
from mla_ray.runtime.storage import as_path, read_bytes
from mla_ray.training.run_spec import stream_of

PhaseProgress = Callable[[str, int], None]
"""Called with a phase and the number of rows done so far."""

ROWS = pa.schema(
    {"key": pa.string(), "source": pa.string(), "target": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)
"""`source` is the English text or the image's id. Rows must differ in `source` or `target`."""
CONTENTS = pa.schema(
    {"key": pa.string(), "content": pa.large_binary(), "uri": pa.string()}
    | {"file": pa.int32(), "row": pa.int64()}
)


@dataclass
class Draft:
    """Table that was read and validated, as blocks on the local disk.

    Attributes:
        language: Language of its texts.
        name: Name of the table in its run.
        stage: Stage that uses the table.
        stream: Stream that read the table, with the problems of the dropped rows.
        blocks: Rows (`ROWS`) as blocks, each with the bits with which its keys begin.
        contents: Texts or images to encode (`CONTENTS`), in the same form.

    """

    language: str
    name: str
    stage: Stage
    stream: Stream
    blocks: list[tuple[str, ScratchTable]]
    contents: list[tuple[str, ScratchTable]]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(block.rows for _, block in self.blocks)

    def sample(self, count: int) -> pa.Table:
        """Return at most `count` rows, the first ones in the order of the keys' hashes.

        That order is random and always the same.
        """
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
    """Read and validate all tables.

    Raises:
        InvalidTable: A table is invalid. The error contains the problems of all tables.

    """
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
    """Read and validate one table of a corpus, or one split of it.

    Raises:
        InvalidTable: The table has invalid rows and `skip_invalid` is False, or no valid row.

    """
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
    """Return the rows and the images of a piece of a caption table.

    An image at a path or URL is read here for its key, and again when it is encoded.
    """
    inline = pa.types.is_large_binary(piece["image"].type)
    key_at = lru_cache(1024)(_key_at)  # consecutive captions can be of the same image
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
    """Return the block without repeated rows. Rows that repeat each other are in one block."""
    table = block.read()
    kept = stream.refuse_repeats(table, ("source", "target"), {})
    return block if len(kept) == len(table) else replaced(block, kept)


def replaced(block: ScratchTable, rows: pa.Table) -> ScratchTable:
    """Replace the content of a block with these rows. Return the new block."""
    block.delete()
    kept = ScratchTable(block.path, block.schema)
    kept.add(rows)
    kept.close()
    return kept


def first_of_each_key(table: pa.Table) -> pa.Table:
    """Return the first row of each key."""
    seen: set[str] = set()
    keep = []
    for key in table["key"].to_pylist():
        keep.append(key not in seen)
        seen.add(key)
    return table.filter(pa.array(keep, pa.bool_()))
