"""Datasink of Ray Data that writes encoded blocks to index collections.

Write tasks import this module. It does not import torch and open_clip, which takes many seconds.

Shapes: N points, E joint embedding size.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data.datasource import Datasink, WriteResult

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.indexed import Indexed
from mla_ray.index.writing import open_collections
from mla_ray.runtime.storage import patiently

FIELDS = tuple(field.name for field in fields(Entry))
"""Fields of an `Entry`, which are columns of an encoded block."""


def upsert_block(collections: Mapping[str, CaptionIndex], block: pa.Table) -> Indexed:
    """Write a block of `PointEncoder` to the collections; retry if the server does not answer."""
    indexed = Indexed()
    good = block.filter(pc.is_null(block["reason"]))
    for collection, index in collections.items():
        rows = good.filter(pc.equal(good["collection"], collection))
        encoded = rows.filter(pc.is_valid(rows["vector"]))
        columns = (encoded[name].to_pylist() for name in FIELDS)
        entries = [Entry(*row) for row in zip(*columns, strict=True)]
        flat = encoded["vector"].combine_chunks().flatten().to_numpy()
        vectors_NE = flat.reshape(len(entries), index.space.dim)
        hashes = encoded["hash"].to_pylist()
        indexed.count(
            collection,
            encoded=patiently(
                partial(index.upsert, entries, vectors_NE, hashes), what=f"writing {collection}"
            ),
            unchanged=len(rows) - len(encoded),
        )
    for reason in block["reason"].drop_null().to_pylist():
        indexed.reject(reason)
    return indexed


class IndexSink(Datasink):  # type: ignore[misc]  # Ray is untyped
    """Datasink that writes encoded blocks to a server from several tasks, each with its own client.

    The collections must exist. The package ray-qdrant also has a sink that takes ids, payload and a
    named vector. It is not used, because a zero vector or an invalid row fails its task. All writes
    use `CaptionIndex.upsert`, so ids, vector lengths and errors are handled in one place.
    """

    def __init__(self, url: str, space: VectorSpace) -> None:
        self.url = url
        self.space = space
        self.indexed = Indexed()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Indexed:
        """Write the blocks of one task and return their counts."""
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
        """Add up the counts of all tasks in `indexed`."""
        for indexed in write_result.write_returns:
            self.indexed.add(indexed)
