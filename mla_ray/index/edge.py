"""A collection in a folder: Qdrant's engine in this process, one owner at a time."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import qdrant_edge as edge

from mla_ray.index.backend import (
    HNSW_EF,
    INDEXED,
    MAX_LANGUAGES,
    OVERSAMPLING,
    QUANTILE,
    SCROLL,
    VECTOR,
    Backend,
    Kind,
    Point,
    Where,
    check_kept,
    missing,
    next_version,
    version,
    versions,
)


class EdgeBackend:
    """The embedded engine. The folder holds a shard a version, `space.json`, `current`, `lock`."""

    def __init__(
        self, folder: Path, kind: Kind, shard: edge.EdgeShard, lock: TextIO | None
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.shard = shard
        self.lock = lock  # None for a version being filled: it lives under its owner's lock

    @classmethod
    def open(cls, folder: Path, kind: Kind, create: bool) -> "EdgeBackend":
        current, record = folder / "current", folder / "space.json"
        if not create and not current.exists():
            raise missing(str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context((folder / "lock").open("a"))
            try:
                # The engine locks a shard, not the choice between versions, and says "WouldBlock".
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(
                    f"{folder} is open already, here or in another process, and can have one "
                    "owner; close it there, or use a Qdrant server (http://…) for several"
                ) from error
            if record.exists():
                kind = kind.of_record(json.loads(record.read_text()), str(folder))
            else:
                _write(record, json.dumps(kind.record(), indent=2))
            if current.exists():
                name = current.read_text()
                if name not in versions(kind.space, folder.name, _folders(folder)):
                    raise ValueError(
                        f"{current} names {name!r}, which is no version in that folder; restore "
                        f"the folder from a backup, or delete it and ingest again"
                    )
                shard = edge.EdgeShard.load(str(folder / name))
            else:
                name = version(kind.space, folder.name, 1)
                shutil.rmtree(folder / name, ignore_errors=True)  # a creation that was killed
                shard = _create_shard(folder / name, kind)
                _write(current, name)
            undo.pop_all()
        return cls(folder, kind, shard, lock)

    def upsert(self, points: list[Point]) -> None:
        rows = [edge.Point(p.id, {VECTOR: p.vector}, p.payload) for p in points]
        self.shard.update(edge.UpdateOperation.upsert_points(rows))

    def delete(self, ids: list[str], where: Where) -> None:
        chosen = self._filter(where, ids)
        self.shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))

    def search(
        self, vector: list[float], limit: int, where: Where
    ) -> list[tuple[dict[str, Any], float]]:
        rescored = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        found = self.shard.query(
            edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(vector, VECTOR),
                filter=self._filter(where),
                with_payload=True,
                params=edge.SearchParams(
                    hnsw_ef=HNSW_EF, quantization=rescored if self.kind.quantization else None
                ),
            )
        )
        return [(point.payload or {}, point.score) for point in found]

    def scroll(self, where: Where) -> Iterator[dict[str, Any]]:
        start: Any = None
        while True:
            found, start = self.shard.scroll(
                edge.ScrollRequest(
                    offset=start, limit=SCROLL, filter=self._filter(where), with_payload=True
                )
            )
            yield from (point.payload or {} for point in found)
            if start is None:
                return

    def count(self, where: Where) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True, filter=self._filter(where))))

    def facet(self, field: str) -> dict[str, int]:
        found = self.shard.facet(edge.FacetRequest(field, limit=MAX_LANGUAGES, exact=True))
        return {str(hit.value): hit.count for hit in found}

    @contextmanager
    def rebuild(self) -> Iterator[Backend]:
        name = next_version(self.kind.space, self.folder.name, _folders(self.folder))
        kind = self.kind.rebuilt()
        shard = _create_shard(self.folder / name, kind)
        try:
            yield EdgeBackend(self.folder, kind, shard, lock=None)
            check_kept(name, _folders(self.folder))
            shard.flush()
        except BaseException:
            shard.close()
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise
        shard.close()  # so that `fresh`, if someone kept it, cannot write past the swap
        _write(self.folder / "current", name)
        _write(self.folder / "space.json", json.dumps(kind.record(), indent=2))
        self.kind = kind
        # Not closed: searches still running in the old shard end well, then it closes itself.
        self.shard = edge.EdgeShard.load(str(self.folder / name))
        for other in versions(self.kind.space, self.folder.name, _folders(self.folder)):
            if other != name:  # the one replaced, and those of rebuilds that were killed
                shutil.rmtree(self.folder / other, ignore_errors=True)  # the next one retries

    def ping(self) -> None:
        try:
            self.shard.info()
        except Exception as error:  # the engine raises no other
            raise RuntimeError(f"{self.folder} does not answer: {error}") from error

    def optimize(self) -> None:
        self.shard.optimize()

    def flush(self) -> None:
        self.shard.flush()

    def close(self) -> None:
        self.shard.close()
        if self.lock:
            self.lock.close()

    @staticmethod
    def _filter(where: Where, ids: list[str] | None = None) -> edge.Filter:
        must: list[Any] = [
            edge.IsEmptyCondition(field)
            if value is None
            else edge.FieldCondition(field, match=edge.MatchValue(value))
            for field, value in where.items()
        ]
        if ids is not None:
            must.append(edge.HasIdCondition(set(ids)))
        return edge.Filter(must=must)


def _create_shard(path: Path, kind: Kind) -> edge.EdgeShard:
    int8 = edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=QUANTILE, always_ram=True
    )
    params = edge.EdgeVectorParams(
        size=kind.space.dim,
        distance=edge.Distance.Cosine,
        quantization_config=int8 if kind.quantization else None,
    )
    shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors={VECTOR: params}))
    for field in INDEXED:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    return shard


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it, even after a crash, sees old or new."""
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
