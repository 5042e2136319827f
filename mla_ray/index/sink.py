"""Encoded blocks of Ray Data into index collections.

Imports neither torch nor open_clip, which takes many seconds: tasks that only write import this.

Shapes: N points, E joint embedding size.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import Datasink, WriteResult

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex, Entry, open_collections
from mla_ray.runtime.storage import patiently

FIELDS = tuple(field.name for field in fields(Entry))
MAX_REASONS = 1000


@dataclass
class Indexed:
    """What was written, by collection, and what was not."""

    written: dict[str, int] = field(default_factory=lambda: {IMAGES: 0, CAPTIONS: 0})
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)  # of the first MAX_REASONS
    removed: dict[str, int] = field(default_factory=dict)  # by a sync, as `ingest.sync` counts

    def add(self, other: "Indexed") -> None:
        for name, count in other.written.items():
            self.written[name] += count
        self.rejected += other.rejected
        self.reasons = (self.reasons + other.reasons)[:MAX_REASONS]


def upsert_block(collections: Mapping[str, CaptionIndex], block: pa.Table) -> Indexed:
    """Upsert a block of `PointEncoder`'s, trying again for a while where no server answers."""
    indexed = Indexed()
    good = block.filter(pc.is_null(block["reason"]))
    for collection, index in collections.items():
        rows = good.filter(pc.equal(good["collection"], collection))
        columns = (rows[name].to_pylist() for name in FIELDS)
        entries = [Entry(*row) for row in zip(*columns, strict=True)]
        flat = rows["vector"].combine_chunks().flatten().to_numpy()
        vectors_NE = flat.reshape(len(entries), index.space.dim)
        indexed.written[collection] = patiently(
            partial(index.upsert, entries, vectors_NE), what=f"writing {collection}"
        )
    reasons = block["reason"].drop_null().to_pylist()
    indexed.rejected, indexed.reasons = len(reasons), reasons[:MAX_REASONS]
    return indexed


class IndexSink(Datasink):  # type: ignore[misc]  # Ray is untyped
    """Writes encoded blocks to a server from many tasks, each with its own client.

    The package ray-qdrant has a sink that could: it takes ids, payload and a named vector. But a
    zero vector or one bad row fails its task, and ids, lengths and errors would then have two
    homes; through `CaptionIndex.upsert` a point is the same whoever writes it. The collections
    exist already.
    """

    def __init__(self, url: str, space: VectorSpace) -> None:
        self.url = url
        self.space = space
        self.indexed = Indexed()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Indexed:
        indexed = Indexed()
        with ExitStack() as stack:
            collections = patiently(
                lambda: stack.enter_context(open_collections(self.url, self.space)),
                what="opening the index",
            )
            for block in blocks:
                indexed.add(upsert_block(collections, block))
        return indexed

    def on_write_complete(self, write_result: WriteResult) -> None:
        for indexed in write_result.write_returns:
            self.indexed.add(indexed)
