"""Tables of any size as blocks: rows in the order of their keys' hashes, one block in memory.

The key of a row is a hash of what its frozen feature is of (an English text, an image's bytes), so
the first bits of keys cut a table into blocks of any size, and

- the order of a table is a shuffle already, whoever sorted the file before;
- rows of a block need only the features whose keys begin with the same bits (`feature_store`);
- rows that repeat each other are in one block.

    <table>/index.json                  blocks and their rows
    <table>/rows/b0110.parquet          ids, key, of captions also caption: what training reads
    <table>/contents/b0110.parquet      key, content, uri, file, row: what is encoded


Shapes: N rows, E joint embedding size.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.feature_store import Features, FeatureStore, hashes
from mla_ray.model.tokenizers import Ids
from mla_ray.runtime.storage import is_local, read_bytes, read_json, write_bytes, write_json

BLOCK = 16_384
"""Most rows of a block (a single key with more rows excepted)."""
MAX_BITS = 48
CACHED = 2
"""Blocks of a table in memory: a pool of batches may lie across two."""
IMAGES = 2_048
"""Most images of a block of contents: these hold the images themselves."""


# --- what training reads ------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Some rows of a table: what a step needs of each.

    Attributes:
        ids: embedding rows of the tokens.
        frozen: the feature to meet [N, E], of the English text or the image.
        key: what that feature is of [N] uint64.
        caption: a hash of the text's identity [N] uint64, of captions; zeros otherwise.

    """

    ids: list[Ids]
    frozen: Features
    key: npt.NDArray[np.uint64]
    caption: npt.NDArray[np.uint64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
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
        if len(parts) == 1:
            return parts[0]
        return cls(
            [ids for part in parts for ids in part.ids],
            np.concatenate([part.frozen for part in parts]),
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.caption for part in parts]),
        )


class ShuffledTable:
    """The rows of a prepared table in shuffled epochs, without end.

    Blocks come in random order and the rows of a block in random order; a row whose feature could
    not be had (a broken image) is replaced by another of its block.

    Args:
        folder: of the table.
        row_of: embedding row of each tokenizer id.
        store: where the features are.
        number: of the table in its run; with `seed` it makes the order its own.

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
        """Rows of a block in the order of an epoch, without those that have no feature."""
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


# --- cutting a table into blocks ---------------------------------------------------------------


class ScratchTable:
    """Rows of one schema on their way through a scratch file, written once, then read."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.rows = 0
        self._writer: Any = None

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), self.schema)
        self._writer.write_table(table)
        self.rows += table.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        self.close()
        if self.rows:
            with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as reader:
                yield from reader

    def pieces(self, size: int) -> Iterator[pa.Table]:
        """The batches, small ones joined up to `size` rows; one with more stays as it is."""
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
        """All of it: for a table of one block."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def delete(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def cut(
    table: ScratchTable, limit: int = BLOCK, prefix: str = ""
) -> Iterator[tuple[str, ScratchTable]]:
    """The blocks of a table, each with the bits that its keys begin with; `table` is used up.

    The number of blocks is open only where the rows are counted, so the cut goes by halves: into
    up to 64 parts, each of which is cut again if it is too large.
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
    """Say that a table is there, block by block; written last."""
    document = [{"prefix": prefix, "rows": rows} for prefix, rows in blocks]
    write_json(folder / "index.json", {"blocks": document})


def read_index(folder: UPath) -> list[tuple[str, int]]:
    """The blocks of a table, by prefix, and their rows."""
    return [
        (block["prefix"], block["rows"]) for block in read_json(folder / "index.json")["blocks"]
    ]


def read_parquet(path: UPath) -> pa.Table:
    """All rows of a Parquet file at a path or URL."""
    return pq.read_table(pa.BufferReader(read_bytes(path)))


def write_parquet(table: pa.Table, path: UPath) -> None:
    """Write a Parquet file to a path or URL, whole or not at all."""
    sink = BytesIO()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue())


def fingerprint(path: UPath) -> str:
    """What tells a file from a changed one: a hash of it, at a URL the store's own checksum."""
    if is_local(path):
        with Path(path.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return str(path.fs.checksum(path.path))
