"""Tables split by hash into blocks, so that a table of any size needs little memory.

The key of a row is a hash of the content that its frozen feature describes: an English text or the
bytes of an image. The first bits of the keys split a table into blocks of any size. This has three
effects:

- The order of the blocks is a shuffle, even if the source file was sorted.
- The rows of a block need only features whose keys begin with the same bits (`feature_store`).
- Rows that repeat each other are in the same block.

Layout of a table:

    <table>/index.json                  blocks and their numbers of rows
    <table>/rows/b0110.parquet          rows for training: ids, key, and caption if it has captions
    <table>/contents/b0110.parquet      contents to encode: key, content, uri, file, row

Shapes: N rows, E joint embedding size.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from upath import UPath

from mla_ray.data.feature_store import Features, FeatureStore
from mla_ray.data.keys import hashes
from mla_ray.data.parquet import read_parquet
from mla_ray.model.tokenizers import Ids
from mla_ray.runtime.storage import is_local, read_json, write_json

BLOCK = 16_384
"""Maximum number of rows in a block. Only a single key with more rows makes a larger block."""
MAX_BITS = 48
CACHED = 2
"""Number of blocks of a table in memory. A pool of batches can span two blocks."""
IMAGES = 2_048
"""Maximum number of images in a block of contents, whose rows can hold the image bytes."""


# --- reading blocks for training ----------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Rows of a table with the values that a training step needs.

    Attributes:
        ids: Embedding rows of the tokens, one array for each row.
        frozen: Target features `[N, E]` float32, of the English texts or the images.
        key: First 64 bits of the keys of these features, `[N]` uint64.
        caption: Hashes of the captions' identities, `[N]` uint64. Zeros if there are no captions.

    """

    ids: list[Ids]
    frozen: Features
    key: npt.NDArray[np.uint64]
    caption: npt.NDArray[np.uint64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each row, `[N]` int64."""
        return np.fromiter((len(ids) for ids in self.ids), np.int64, len(self.ids))

    def __getitem__(self, index: npt.NDArray[np.int64] | slice) -> Self:
        places = np.arange(len(self.ids))[index]
        return type(self)(
            [self.ids[place] for place in places],
            self.frozen[places],
            self.key[places],
            self.caption[places],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Concatenate parts in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [ids for part in parts for ids in part.ids],
            np.concatenate([part.frozen for part in parts]),
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.caption for part in parts]),
        )


class ShuffledTable:
    """Rows of a prepared table as an endless sequence of shuffled epochs.

    Each epoch shuffles the blocks, and the rows inside each block. A row without a feature (for
    example of a broken image) is replaced by another row of its block.

    Args:
        folder: Folder of the table.
        row_of: Embedding row of each tokenizer id.
        store: Store of the features.
        seed: Seed of the order.
        number: Number of the table in its run. It gives each table of a run its own order.

    """

    def __init__(
        self,
        folder: UPath,
        row_of: npt.NDArray[np.int32],
        store: FeatureStore,
        seed: int,
        number: int,
    ) -> None:
        self.folder, self.row_of, self.store = folder, row_of, store
        self.seed, self.number = seed, number
        index = read_index(folder)
        self.prefixes = [prefix for prefix, _ in index]
        self.sizes = np.array([rows for _, rows in index], np.int64)
        self._cache: OrderedDict[int, Examples] = OrderedDict()
        self._block_order = lru_cache(2)(self._shuffled_blocks)

    def take(self, start: int, count: int) -> Examples:
        """Return `count` rows from position `start` of the sequence.

        Raises:
            ValueError: No row of a block has a feature.

        """
        total, parts = int(self.sizes.sum()), []
        while count:
            epoch, offset = divmod(start, total)
            order, ends = self._block_order(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            block = int(order[place])
            within = offset - int(ends[place] - self.sizes[block])
            rows = self._block(block)
            chosen = self._shuffled_rows(epoch, block, rows)[within : within + count]
            parts.append(rows[chosen])
            start, count = start + len(chosen), count - len(chosen)
        return Examples.concatenate(parts)

    def _shuffled_blocks(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        rng = np.random.default_rng([self.seed, 0, self.number, epoch])
        order = rng.permutation(len(self.sizes))
        return order, self.sizes[order].cumsum()

    def _shuffled_rows(self, epoch: int, block: int, rows: Examples) -> npt.NDArray[np.int64]:
        """Return the row numbers of a block in an epoch's order.

        Rows with a feature are repeated in place of the rows without one.
        """
        rng = np.random.default_rng([self.seed, 3, self.number, epoch, block])
        order = rng.permutation(len(rows.ids))
        sound = order[~np.isnan(rows.frozen[order, 0])]
        if not len(sound):
            raise ValueError(f"{self.folder}: no row of block {block} has a feature")
        return np.resize(sound, len(order))

    def _block(self, number: int) -> Examples:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        while len(self._cache) >= CACHED:
            self._cache.popitem(last=False)
        prefix = self.prefixes[number]
        table = read_parquet(self.folder / "rows" / f"b{prefix}.parquet")
        column = table["ids"].combine_chunks()
        ids = np.split(self.row_of[column.values.to_numpy()], column.offsets.to_numpy()[1:-1])
        keys = table["key"].to_pylist()
        caption = np.zeros(len(keys), np.uint64)
        if "caption" in table.column_names:
            caption = hashes(table["caption"].to_pylist())
        rows = Examples(ids, self.store.read(keys), hashes(keys), caption)
        self._cache[number] = rows
        return rows


# --- splitting a table into blocks --------------------------------------------------------------


class ScratchTable:
    """Table in a scratch file that is written once and then read."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.rows = 0
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), self.schema)
        self._writer.write_table(table)
        self.rows += table.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Finish writing and yield all record batches."""
        self.close()
        if self.rows:
            with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as reader:
                yield from reader

    def pieces(self, size: int) -> Iterator[pa.Table]:
        """Yield tables of at most `size` rows, joined from small batches.

        A single batch with more than `size` rows is not split.
        """
        joined: list[pa.RecordBatch] = []
        rows = 0
        for batch in self.batches():
            if joined and rows + batch.num_rows > size:
                yield pa.Table.from_batches(joined).combine_chunks()
                joined, rows = [], 0
            joined.append(batch)
            rows += batch.num_rows
        if joined:
            yield pa.Table.from_batches(joined).combine_chunks()

    def read(self) -> pa.Table:
        """Return all rows in memory. Use it for a table of one block."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def close(self) -> None:
        """Finish writing. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def delete(self) -> None:
        """Finish writing and delete the scratch file."""
        self.close()
        self.path.unlink(missing_ok=True)


def cut(
    table: ScratchTable, limit: int = BLOCK, prefix: str = ""
) -> Iterator[tuple[str, ScratchTable]]:
    """Split a table into blocks by the first bits of its keys.

    A table that is too large is split into up to 64 parts and deleted. A part that is still too
    large is split again.

    Args:
        table: Table with a column `key`.
        limit: Maximum number of rows in a block.
        prefix: First bits that all keys of `table` share.

    Yields:
        The first bits of a block's keys, and the block.

    """
    if table.rows <= limit or len(prefix) >= MAX_BITS:
        yield prefix, table
        return
    bits = min(6, max(1, int(np.ceil(np.log2(1.25 * table.rows / limit)))))
    parts = [
        ScratchTable(table.path.with_name(f"{table.path.name}.{part:02d}"), table.schema)
        for part in range(2**bits)
    ]
    shift = np.uint64(64 - len(prefix) - bits)
    for piece in table.pieces(limit):
        part_of = (hashes(piece["key"].to_pylist()) >> shift) & np.uint64(2**bits - 1)
        order = np.argsort(part_of, kind="stable")
        ends = np.searchsorted(part_of[order], np.arange(2**bits), side="right")
        sorted_rows, start = piece.take(order), 0
        for part, end in zip(parts, ends, strict=True):
            if end > start:
                part.add(sorted_rows.slice(start, end - start))
            start = end
    table.delete()
    for number, part in enumerate(parts):
        part.close()
        if part.rows:
            yield from cut(part, limit, f"{prefix}{number:0{bits}b}")


def write_index(folder: UPath, blocks: Sequence[tuple[str, int]]) -> None:
    """Write the index of a table: the prefix and the number of rows of each block.

    Write it last, because readers take a table with an index as complete.
    """
    document = [{"prefix": prefix, "rows": rows} for prefix, rows in blocks]
    write_json(folder / "index.json", {"blocks": document})


def read_index(folder: UPath) -> list[tuple[str, int]]:
    """Return the prefix and the number of rows of each block of a table."""
    return [
        (block["prefix"], block["rows"]) for block in read_json(folder / "index.json")["blocks"]
    ]


def fingerprint(path: UPath) -> str:
    """Return a string that changes when the file changes.

    For a local file this is its SHA-256. For a URL it is the checksum of the fsspec file system.
    """
    if is_local(path):
        with Path(path.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return str(path.fs.checksum(path.path))
