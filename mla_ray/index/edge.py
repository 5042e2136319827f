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
    CollectionBackend,
    CollectionConfig,
    Payload,
    PayloadFilter,
    Point,
    check_kept,
    counts_by_value,
    next_version,
    no_such_collection,
    payloads_and_scores,
    scrolled,
    version,
    versions,
)
from mla_ray.runtime.atomic import replacing_file


class EdgeBackend:
    """The embedded engine. The folder holds a shard a version, `space.json`, `current`, `lock`."""

    def __init__(
        self, folder: Path, config: CollectionConfig, shard: edge.EdgeShard, lock: TextIO | None
    ) -> None:
        self.folder = folder
        self.config = config
        self.shard = shard
        self.lock = lock  # None for a version being filled: it lives under its owner's lock

    @classmethod
    def open(cls, folder: Path, config: CollectionConfig, create: bool) -> "EdgeBackend":
        current, record = folder / "current", folder / "space.json"
        if not create and not current.exists():
            raise no_such_collection(str(folder))
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
                config = config.of_record(json.loads(record.read_text()), str(folder))
            else:
                _write(record, json.dumps(config.record(), indent=2))
            if current.exists():
                name = current.read_text()
                if name not in versions(config.space, folder.name, _folders(folder)):
                    raise ValueError(
                        f"{current} names {name!r}, which is no version in that folder; restore "
                        f"the folder from a backup, or delete it and ingest again"
                    )
                shard = edge.EdgeShard.load(str(folder / name))
            else:
                name = version(config.space, folder.name, 1)
                shutil.rmtree(folder / name, ignore_errors=True)  # a creation that was killed
                shard = _create_shard(folder / name, config)
                _write(current, name)
            undo.pop_all()
        return cls(folder, config, shard, lock)

    def upsert(self, points: list[Point]) -> None:
        rows = [edge.Point(p.id, {VECTOR: p.vector}, p.payload) for p in points]
        self.shard.update(edge.UpdateOperation.upsert_points(rows))

    def delete(self, ids: list[str], where: PayloadFilter) -> None:
        chosen = self._filter(where, ids)
        self.shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))

    def search(
        self, vector: list[float], limit: int, where: PayloadFilter
    ) -> list[tuple[Payload, float]]:
        rescored = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        points = self.shard.query(
            edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(vector, VECTOR),
                filter=self._filter(where),
                with_payload=True,
                params=edge.SearchParams(
                    hnsw_ef=HNSW_EF, quantization=rescored if self.config.quantization else None
                ),
            )
        )
        return payloads_and_scores(points)

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        return scrolled(
            lambda offset: self.shard.scroll(
                edge.ScrollRequest(
                    offset=offset, limit=SCROLL, filter=self._filter(where), with_payload=True
                )
            )
        )

    def count(self, where: PayloadFilter) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True, filter=self._filter(where))))

    def facet(self, field: str) -> dict[str, int]:
        request = edge.FacetRequest(field, limit=MAX_LANGUAGES, exact=True)
        return counts_by_value(self.shard.facet(request))

    @contextmanager
    def rebuild(self) -> Iterator[CollectionBackend]:
        name = next_version(self.config.space, self.folder.name, _folders(self.folder))
        config = self.config.rebuilt()
        shard = _create_shard(self.folder / name, config)
        try:
            yield EdgeBackend(self.folder, config, shard, lock=None)
            check_kept(name, _folders(self.folder))
            shard.flush()
        except BaseException:
            shard.close()
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise
        shard.close()  # so that `fresh`, if someone kept it, cannot write past the swap
        _write(self.folder / "current", name)
        _write(self.folder / "space.json", json.dumps(config.record(), indent=2))
        self.config = config
        # Not closed: searches still running in the old shard end well, then it closes itself.
        self.shard = edge.EdgeShard.load(str(self.folder / name))
        for other in versions(self.config.space, self.folder.name, _folders(self.folder)):
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
    def _filter(where: PayloadFilter, ids: list[str] | None = None) -> edge.Filter:
        must: list[Any] = [
            edge.IsEmptyCondition(field)
            if value is None
            else edge.FieldCondition(field, match=edge.MatchValue(value))
            for field, value in where.items()
        ]
        if ids is not None:
            must.append(edge.HasIdCondition(set(ids)))
        return edge.Filter(must=must)


def _create_shard(path: Path, config: CollectionConfig) -> edge.EdgeShard:
    int8 = edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=QUANTILE, always_ram=True
    )
    params = edge.EdgeVectorParams(
        size=config.space.dim,
        distance=edge.Distance.Cosine,
        quantization_config=int8 if config.quantization else None,
    )
    shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors={VECTOR: params}))
    for field in INDEXED:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    return shard


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it, even after a crash, sees old or new."""
    with replacing_file(path) as scratch, scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
