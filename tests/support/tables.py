"""Prepared tables as `mla_ray.training.prepare` writes them, of rows that a test can tell apart."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.data.blocks import ScratchTable, ShuffledTable, cut, write_index
from mla_ray.data.feature_store import FeatureStore
from mla_ray.data.keys import key_of

SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "key": pa.string()})


def make_table(
    folder: Path,
    lengths: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    number: int = 0,
    limit: int = 1 << 14,
    broken: frozenset[int] = frozenset(),
) -> ShuffledTable:
    """A table whose row n has `lengths[n]` tokens and the feature [n, n]; `broken` have none."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key_of(f"{number} {row}") for row in range(len(lengths))]
    scratch = ScratchTable(folder / "scratch", SCHEMA)
    ids = [np.zeros(length, np.int32) for length in lengths]
    scratch.add(pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "key": keys}, SCHEMA))
    store = FeatureStore(UPath(folder / "store"), "f" * 64, "text")
    row_of = {key: row for row, key in enumerate(keys)}
    blocks = []
    for prefix, part in cut(scratch, limit):
        table = part.read()
        (folder / "rows").mkdir(exist_ok=True)
        pq.write_table(table, folder / "rows" / f"b{prefix}.parquet")
        rows = [row_of[key] for key in table["key"].to_pylist()]
        features = np.repeat(np.array(rows, np.float32)[:, None], 2, 1)
        reasons = ["broken" if row in broken else None for row in rows]
        store.write(table["key"].to_pylist(), features, reasons, prefix)
        blocks.append((prefix, len(table)))
    write_index(UPath(folder), blocks)
    return ShuffledTable(UPath(folder), np.zeros(1, np.int32), store, seed, number)
