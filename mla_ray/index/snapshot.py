"""Snapshots of an index: a folder of Parquet files that any engine can be filled from.

`manifest.json` has the record and the number of points of each collection, and name, rows and
SHA-256 of each part. A part has the columns `id`, `vector` (float32) and `payload` (JSON). The
manifest is written last, so a folder without one is no snapshot.

Shapes: N points, E joint embedding size.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mla_ray.index.backend import CollectionConfig, Point, Record
from mla_ray.index.batches import batched
from mla_ray.index.collection import BATCH, CaptionIndex
from mla_ray.index.existing import configs_at
from mla_ray.index.transfer import Transferred, transfer_all
from mla_ray.runtime.progress import Report, counting
from mla_ray.runtime.storage import as_path, is_file, read_bytes, read_json, write_bytes, write_json

FORMAT = 1
"""Version of the layout, in the manifest."""
MANIFEST = "manifest.json"
PART = 64
"""Batches of points in a part: 16,384 points, which are 64 MB at E = 1024."""


def write_snapshot(
    url: str, collections: Sequence[str], folder: str | Path, report: Report
) -> dict[str, int]:
    """Write collections of an index to a snapshot.

    Entries that other processes write meanwhile may be in the snapshot or not.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        collections: Names of the collections. Those that the index does not have are left out.
        folder: Path or URL of a folder that has no snapshot yet.
        report: Receives progress.

    Returns:
        The number of points by collection.

    Raises:
        FileExistsError: The folder has a snapshot.
        LookupError: The index has none of the collections.

    """
    root = as_path(folder)
    if is_file(root / MANIFEST):
        raise FileExistsError(f"{root} has a snapshot already; name another folder, or delete it")
    manifest: dict[str, Any] = {"format": FORMAT, "collections": {}}
    for name, config in configs_at(url, collections).items():
        with CaptionIndex.open(url, config.space, name, create=False) as index:
            advance = counting(report, name, index.count())
            parts: list[Record] = []
            tables: list[pa.Table] = []
            for batch in batched(index.points(), BATCH):
                tables.append(_table(batch, config.space.dim))
                advance(len(batch))
                if len(tables) == PART:
                    parts.append(_write_part(root, f"{name}-{len(parts):05}.parquet", tables))
                    tables = []
            if tables:
                parts.append(_write_part(root, f"{name}-{len(parts):05}.parquet", tables))
        count = sum(part["rows"] for part in parts)
        # `index.points` returns points of the former rule as points of today's schema.
        record = config.rebuilt().record()
        manifest["collections"][name] = {"record": record, "points": count, "parts": parts}
    write_json(root / MANIFEST, manifest)
    return {name: of["points"] for name, of in manifest["collections"].items()}


def restore_snapshot(
    folder: str | Path, url: str, collections: Sequence[str] | None, report: Report
) -> dict[str, Transferred]:
    """Write the collections of a snapshot to an index, and check the result.

    All parts are checked before the first write. After an interruption, the same call writes only
    what is missing or differs.

    Args:
        folder: Path or URL of the snapshot.
        url: URL of the index, as for `CaptionIndex.open`. Missing collections are created.
        collections: Names of the collections; None for all of the snapshot.
        report: Receives progress.

    Returns:
        The numbers of points by collection.

    Raises:
        FileNotFoundError: The folder has no snapshot.
        LookupError: The snapshot lacks one of the collections.
        ValueError: A file is damaged, or a collection holds vectors of another native.

    """
    found = read_snapshot(folder)
    if lacking := sorted(set(collections or []) - found.keys()):
        raise LookupError(
            f"{folder} has no collection {', '.join(lacking)}; it has {', '.join(found)}"
        )
    chosen = {name: found[name] for name in collections or found}
    advance = counting(report, "checking", sum(len(each.parts) for each in chosen.values()))
    for snapshot in chosen.values():
        for part in snapshot.parts:
            snapshot.read_part(part)
            advance(1)
    return transfer_all({name: (each, each.config) for name, each in chosen.items()}, url, report)


def read_snapshot(folder: str | Path) -> dict[str, "CollectionSnapshot"]:
    """Return the collections of a snapshot, by name. Only the manifest is read.

    Raises:
        FileNotFoundError: The folder has no snapshot.
        ValueError: The manifest is damaged, or of another format.

    """
    root = as_path(folder)
    file = root / MANIFEST
    if not is_file(file):
        raise FileNotFoundError(
            f"{root} has no {MANIFEST}: it is no snapshot, or one that was not finished"
        )
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ValueError(f"{file} has format {found!r}, this version reads {FORMAT}")
    try:
        return {
            name: CollectionSnapshot(root, CollectionConfig.read(of["record"], str(file)), of)
            for name, of in manifest["collections"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}; restore it from a backup") from error


class CollectionSnapshot:
    """One collection of a snapshot, a source of points for `transfer_all`."""

    def __init__(self, root: UPath, config: CollectionConfig, manifest: Record) -> None:
        self.root = root
        self.config = config
        self.parts: list[Record] = [dict(part) for part in manifest["parts"]]
        for part in self.parts:
            name, rows, digest = part["file"], part["rows"], part["sha256"]
            if not (
                re.fullmatch(r"[a-z0-9][a-z0-9_-]*\.parquet", str(name))
                and isinstance(rows, int)
                and isinstance(digest, str)
            ):
                raise ValueError(f"{root / MANIFEST} is damaged: it lists the part {part!r}")

    def count(self) -> int:
        """Return the number of points."""
        return sum(part["rows"] for part in self.parts)

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors.

        Raises:
            ValueError: A part is damaged.

        """
        for part in self.parts:
            for batch in self.read_part(part).to_batches(max_chunksize=BATCH):
                columns = (batch[name].to_pylist() for name in ("id", "vector", "payload"))
                for point_id, vector, payload in zip(*columns, strict=True):
                    yield Point(point_id, vector, json.loads(payload))

    def read_part(self, part: Record) -> pa.Table:
        """Return the points of a part, after a check of its bytes, rows and columns.

        Raises:
            ValueError: The part is missing or damaged.

        """
        file = self.root / part["file"]
        again = "restore the file from a backup, or make the snapshot again"
        try:
            data = read_bytes(file)
        except FileNotFoundError as error:
            raise ValueError(f"{file} is missing from the snapshot; {again}") from error
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not that of the manifest; {again}")
        table = pq.read_table(pa.BufferReader(data))
        if table.schema != _schema(self.config.space.dim) or table.num_rows != part["rows"]:
            raise ValueError(
                f"{file} has {table.num_rows:,} rows of {table.schema.to_string()}; the manifest "
                f"says {part['rows']:,} points of {self.config.space.dim} dimensions; {again}"
            )
        return table


def _schema(dim: int) -> pa.Schema:
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    return pa.schema([("id", pa.string()), ("vector", vector), ("payload", pa.string())])


def _table(points: Sequence[Point], dim: int) -> pa.Table:
    schema = _schema(dim)
    vectors_NE = np.array([point.vector for point in points], np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.ravel()), type=schema[1].type)
    payloads = pa.array([json.dumps(point.payload, ensure_ascii=False) for point in points])
    return pa.table([pa.array([point.id for point in points]), vectors, payloads], schema=schema)


def _write_part(root: UPath, name: str, tables: list[pa.Table]) -> Record:
    table = pa.concat_tables(tables)
    sink = BytesIO()
    pq.write_table(table, sink)
    data = sink.getvalue()
    write_bytes(root / name, data)
    return {"file": name, "rows": table.num_rows, "sha256": hashlib.sha256(data).hexdigest()}
