"""A collection in a folder: Qdrant's engine in this process, one owner at a time."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
from mla_ray.index.edge_folder import (
    RESERVE,
    fills_holes,
    holes,
    is_writable,
    occupied,
    owning,
    private_copy,
    require_space,
)
from mla_ray.runtime.atomic import replacing_file

SAME = 1e-6
"""Between a unit vector and the one stored: no score differs by more, which is as it is rounded."""
FLUSH = 16 * 2**20
"""Bytes written, at most, until they are flushed. Until then they are in the log, twice."""
LOG = {"segment_capacity": 4 * 2**20, "segment_queue_len": 0, "retain_closed": 1}
"""The engine's settings of a shard's log. Flushed, it has at most two segments."""
LOG_LIMIT = 16 * 2**20
"""Bytes that a log may have, however few points there are."""


class EdgeBackend:
    """The embedded engine, in a folder of its own or in a copy of one that is read-only."""

    def __init__(
        self,
        folder: Path,
        config: CollectionConfig,
        shard: edge.EdgeShard,
        held: ExitStack,
        read_only: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.shard = shard
        self.read_only = read_only
        self._held = held  # the lock, or the copy; of a version being filled nothing
        self._writing = threading.RLock()
        self._unflushed = 0  # bytes
        self._fills_holes = not read_only and fills_holes(folder)

    @classmethod
    def open(cls, folder: Path, config: CollectionConfig, create: bool) -> "EdgeBackend":
        there = (folder / "current").exists()
        if not create and not there:
            raise no_such_collection(str(folder))
        read_only = there and not is_writable(folder)
        with ExitStack() as held:
            if read_only:
                place = held.enter_context(private_copy(folder))
            else:
                place = folder
                require_space(folder, 0, "opening an index")
                if there and fills_holes(folder):
                    require_space(folder, holes(folder), "opening an index")
                held.enter_context(owning(folder))
            config, shard = _open_current(place, config)
            return cls(folder, config, shard, held.pop_all(), read_only)
        raise AssertionError("unreachable")

    def check_writable(self) -> None:
        if self.read_only:
            raise PermissionError(
                errno.EACCES,
                "the index is read-only for this process: it can be searched, not written to",
                str(self.folder),
            )

    def upsert(self, points: list[Point]) -> None:
        self.check_writable()
        with self._writing:
            changed = self._changed(points)
            if changed:
                size = sum(_size_written(point) for point in changed)
                self._require(size, f"{len(changed)} more points")
                rows = [edge.Point(p.id, {VECTOR: p.vector}, p.payload) for p in changed]
                self._update(edge.UpdateOperation.upsert_points(rows), size)

    def delete(self, ids: list[str], where: PayloadFilter) -> None:
        self.check_writable()
        with self._writing:
            self._require(0, "removing points")
            chosen = self._filter(where, ids)
            operation = edge.UpdateOperation.delete_points_by_filter(chosen)
            self._update(operation, 64 * len(ids))

    def _require(self, size: int, purpose: str) -> None:
        filled = holes(self.folder) if self._fills_holes else 0
        require_space(self.folder, filled + size, purpose)

    def _update(self, operation: edge.UpdateOperation, size: int) -> None:
        self.shard.update(operation)
        self._unflushed += size
        if self._unflushed >= FLUSH:  # what is flushed leaves the log
            self.flush()

    def _changed(self, points: list[Point]) -> list[Point]:
        """Those that are not there already, the same; of two with one id the last."""
        last = {point.id: point for point in points}
        for stored in self.shard.retrieve(list(last), with_payload=True, with_vector=True):
            point, vectors = last[str(stored.id)], stored.vector
            old = vectors.get(VECTOR) if isinstance(vectors, dict) else None
            if stored.payload == point.payload and old is not None:
                away = np.asarray(old, np.float64) - np.asarray(point.vector, np.float64)
                if np.linalg.norm(away) <= SAME:
                    del last[point.id]
        return list(last.values())

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
        self.check_writable()
        with self._next_version(self.config.rebuilt()) as fresh:
            yield fresh

    @contextmanager
    def _next_version(self, config: CollectionConfig) -> Iterator["EdgeBackend"]:
        """Filled in the body of a `with`, then in the place of this one."""
        name = next_version(self.config.space, self.folder.name, _folders(self.folder))
        self._require(0, "another version of an index")
        shard = _create_shard(self.folder / name, config)
        try:
            yield EdgeBackend(self.folder, config, shard, ExitStack())
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
        _remove_others(self.folder, config, name)

    def ping(self) -> None:
        try:
            self.shard.info()
        except Exception as error:  # the engine raises no other
            raise RuntimeError(f"{self.folder} does not answer: {error}") from error

    def optimize(self) -> None:
        self.check_writable()
        with self._writing:
            self._build_graph()
            self.flush()
            self._shorten_log()

    def _build_graph(self) -> None:
        segments = occupied(self._version() / "segments")
        # What is built stands beside what it is of, with graph and int8, until it takes its place.
        self._require(segments + segments // 2, "the graph of an index")
        self.shard.optimize()

    def _shorten_log(self) -> None:
        """Copy all points to a next version if this one's log is long: those of 0.1.0 reach 68 MB.

        The engine lets a log have two segments, and its size of a segment is set at the beginning.
        Nothing may be taken out of a log by hand: the engine counts writes by it, and passes over
        those whose number it has seen.
        """
        log = occupied(self._version() / "wal")
        segments = occupied(self._version() / "segments")
        if log <= max(LOG_LIMIT, segments):
            return
        if shutil.disk_usage(self.folder).free < 4 * segments + RESERVE:
            return  # it goes on as it is, until there is room
        with self._next_version(self.config) as fresh:
            offset = None
            while True:
                request = edge.ScrollRequest(
                    offset=offset, limit=SCROLL, with_payload=True, with_vector=True
                )
                stored, offset = self.shard.scroll(request)
                rows = [edge.Point(point.id, point.vector or {}, point.payload) for point in stored]
                fresh._update(edge.UpdateOperation.upsert_points(rows), FLUSH)
                if offset is None:
                    break
            fresh.shard.optimize()

    def _version(self) -> Path:
        return self.folder / (self.folder / "current").read_text()

    def flush(self) -> None:
        self.shard.flush()
        self._unflushed = 0

    def close(self) -> None:
        self.shard.close()
        self._held.close()

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


def _open_current(
    folder: Path, config: CollectionConfig
) -> tuple[CollectionConfig, edge.EdgeShard]:
    """The version that a folder of this process names, made if there is none, and what it is."""
    current, record = folder / "current", folder / "space.json"
    if record.exists():
        config = config.of_record(json.loads(record.read_text()), str(folder))
    else:
        _write(record, json.dumps(config.record(), indent=2))
    if not current.exists():
        name = version(config.space, folder.name, 1)
        shutil.rmtree(folder / name, ignore_errors=True)  # a creation that was killed
        shard = _create_shard(folder / name, config)
        _write(current, name)
        return config, shard
    name = current.read_text()
    if name not in versions(config.space, folder.name, _folders(folder)):
        raise ValueError(
            f"{current} names {name!r}, which is no version in that folder; restore "
            f"the folder from a backup, or delete it and ingest again"
        )
    _remove_others(folder, config, name)  # of rebuilds that were killed
    return config, edge.EdgeShard.load(str(folder / name))


def _create_shard(path: Path, config: CollectionConfig) -> edge.EdgeShard:
    int8 = edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=QUANTILE, always_ram=True
    )
    params = edge.EdgeVectorParams(
        size=config.space.dim,
        distance=edge.Distance.Cosine,
        quantization_config=int8 if config.quantization else None,
    )
    # `EdgeConfig` takes no `wal_options` in Python; the shard's own file, whose settings are taken
    # where the argument has none, does. To be without a log would not do: a point whose writing
    # was broken off would have its new vector and its old payload.
    path.mkdir(parents=True)
    _write(path / "edge_config.json", json.dumps({"vectors": {}, "wal_options": LOG}))
    shard = edge.EdgeShard.load(str(path), edge.EdgeConfig(vectors={VECTOR: params}))
    for field in INDEXED:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    return shard


def _size_written(point: Point) -> int:
    """Bytes that a point takes at most: 4 a component in its segment, 5 and more in the log."""
    return 10 * len(point.vector) + 3 * len(json.dumps(point.payload)) + 2048


def _remove_others(folder: Path, config: CollectionConfig, name: str) -> None:
    """Remove all versions but one: what it replaced, and what rebuilds left that were killed."""
    for other in versions(config.space, folder.name, _folders(folder)):
        if other != name:
            shutil.rmtree(folder / other, ignore_errors=True)  # the next one tries again


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it, even after a crash, sees old or new."""
    with replacing_file(path) as scratch, scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
