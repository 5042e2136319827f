"""Collections in a folder: Qdrant's engine in this process, with one owner at a time."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import qdrant_edge as edge

from mla_ray.index.backend import (
    HASH,
    INDEXED,
    MAX_LANGUAGES,
    SCROLL,
    SCROLL_VECTORS,
    WORDS,
    CollectionBackend,
    CollectionConfig,
    Nearest,
    Payload,
    PayloadFilter,
    Point,
    are_equal,
    counts_by_value,
    hashes_by_id,
    payloads_and_next,
    payloads_and_scores,
    scrolled,
    whole_points,
)
from mla_ray.index.batches import batched
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
from mla_ray.index.edge_requests import filter_of, request_of, row_of, size_written, words_vector
from mla_ray.index.edge_settings import CONFIG_FILE, creation_of, has_words, settings_of
from mla_ray.index.lexical import WORDS_RULE
from mla_ray.index.settings import IndexSettings
from mla_ray.index.versions import (
    check_kept,
    next_version,
    no_such_collection,
    version,
    versions,
)
from mla_ray.runtime.atomic import replacing_file

FLUSH = 16 * 2**20
"""Bytes written before the next flush. Unflushed data takes space twice: it is in the log, too."""
LOG = {"segment_capacity": 4 * 2**20, "segment_queue_len": 0, "retain_closed": 1}
"""The engine's settings for the log of a shard. After a flush the log has at most two segments."""
STALE = "stale"
"""File in a collection's folder. It exists if points were removed or replaced since the last copy.

Their data may still be in the segments or in the log.
"""
RECORD = "space.json"
"""File in a collection's folder with the record of its points."""
LOG_LIMIT = 16 * 2**20
"""Bytes that a log may always have, even if there are few points."""


class EdgeBackend:
    """Backend of the embedded engine, in its own folder or in a copy of a read-only folder."""

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
        self._held = held  # the lock or the copy; empty for a version that is being filled
        self._writing = threading.RLock()
        self._unflushed = 0  # bytes
        self._fills_holes = not read_only and fills_holes(folder)

    @classmethod
    def open(cls, folder: Path, config: CollectionConfig, create: bool) -> "EdgeBackend":
        """Open the collection in `folder`; create it if it is missing and `create` is set.

        A folder that this process may not write to is opened as a private copy.

        Raises:
            LookupError: The collection does not exist, and `create` is False.
            ValueError: The collection does not match `config`, or its version is missing.
            RuntimeError: Another process owns the folder.
            OSError: There is too little disk space (ENOSPC).

        """
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
        """Raise a PermissionError if the collection is read-only for this process."""
        if self.read_only:
            raise PermissionError(
                errno.EACCES,
                "the index is read-only for this process: it can be searched but not written to",
                str(self.folder),
            )

    def upsert(self, points: list[Point]) -> None:
        """Write points; skip those that are stored with the same vector and payload."""
        self.check_writable()
        with self._writing:
            changed = self._changed(points)
            if changed:
                size = sum(size_written(point) for point in changed)
                self._require(size, f"{len(changed)} more points")
                rows = [row_of(point, self.config) for point in changed]
                self._update(edge.UpdateOperation.upsert_points(rows), size)

    def delete(self, where: PayloadFilter, ids: list[str] | None = None) -> int:
        """Remove the points that match, or those of `ids` that match. Return how many."""
        self.check_writable()
        chosen = filter_of(where, ids)
        with self._writing:
            matching = int(self.shard.count(edge.CountRequest(exact=True, filter=chosen)))
            if matching:
                self._require(0, "removing points")
                (self.folder / STALE).touch()
                operation = edge.UpdateOperation.delete_points_by_filter(chosen)
                self._update(operation, 64 * matching)
        return matching

    def hashes(self, ids: list[str]) -> dict[str, str]:
        """Return the hashes of those points in `ids` that exist and have one, by id."""
        only = edge.PayloadSelector.Include([HASH])
        return hashes_by_id(self.shard.retrieve(list(ids), with_payload=only, with_vector=False))

    def _require(self, size: int, purpose: str) -> None:
        filled = holes(self.folder) if self._fills_holes else 0
        require_space(self.folder, filled + size, purpose)

    def _update(self, operation: edge.UpdateOperation, size: int) -> None:
        self.shard.update(operation)
        self._unflushed += size
        if self._unflushed >= FLUSH:  # a flush removes the data from the log
            self.flush()

    def _changed(self, points: list[Point]) -> list[Point]:
        """Return the points that differ from the stored ones; of several with one id the last."""
        last = {point.id: point for point in points}
        for stored in self.retrieve(list(last)):
            if are_equal(stored, last[stored.id]):
                del last[stored.id]
            else:
                (self.folder / STALE).touch()
        return list(last.values())

    def search(self, queries: Sequence[Nearest]) -> list[list[tuple[Payload, float]]]:
        """Return payloads and scores of each query, best first, equal scores in any order."""
        requests = (request_of(query, self.config) for query in queries)
        return [payloads_and_scores(self.shard.query(request)) for request in requests]

    def page(
        self, where: PayloadFilter, limit: int, start: str | None
    ) -> tuple[list[Payload], str | None]:
        """Return payloads of points that match, and the id of the point after them."""
        request = edge.ScrollRequest(
            offset=start, limit=limit, filter=filter_of(where), with_payload=True
        )
        return payloads_and_next(*self.shard.scroll(request))

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        """Yield the payloads of all points that match, in the order of point ids."""
        return scrolled(lambda start: self.page(where, SCROLL, start))

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors, in the order of point ids."""
        return whole_points(
            scrolled(
                lambda offset: self.shard.scroll(
                    edge.ScrollRequest(
                        offset=offset, limit=SCROLL_VECTORS, with_payload=True, with_vector=True
                    )
                )
            )
        )

    def retrieve(self, ids: list[str]) -> list[Point]:
        """Return the points with these ids and their vectors, in any order; skip missing ones."""
        return list(whole_points(self.shard.retrieve([*ids], with_payload=True, with_vector=True)))

    def count(self, where: PayloadFilter) -> int:
        """Return the number of points that match."""
        return int(self.shard.count(edge.CountRequest(exact=True, filter=filter_of(where))))

    def facet(self, field: str) -> dict[str, int]:
        """Return the number of points by value of a payload field."""
        request = edge.FacetRequest(field, limit=MAX_LANGUAGES, exact=True)
        return counts_by_value(self.shard.facet(request))

    @contextmanager
    def rebuild(self, settings: IndexSettings | None = None) -> Iterator[CollectionBackend]:
        """Yield an empty next version that replaces this one when the `with` block ends.

        If the block raises, the next version is deleted and this one stays.
        """
        self.check_writable()
        if settings is not None:
            settings.require_embedded(str(self.folder))
        with self._next_version(self.config.rebuilt(settings)) as fresh:
            yield fresh

    @contextmanager
    def _next_version(self, config: CollectionConfig) -> Iterator["EdgeBackend"]:
        """Yield an empty next version with this configuration, which then replaces this one."""
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
        shard.close()  # a caller that kept `fresh` must not write to it after the swap
        _write(self.folder / "current", name)
        _write(self.folder / RECORD, json.dumps(config.record(), indent=2))
        self.config = config
        # The old shard is not closed here. Searches that still run in it can end; it then closes
        # itself.
        self.shard = edge.EdgeShard.load(str(self.folder / name))
        _remove_others(self.folder, config, name)

    def ping(self) -> None:
        """Raise a RuntimeError if the engine does not answer."""
        try:
            self.shard.info()
        except Exception as error:  # the engine raises plain Exceptions
            raise RuntimeError(f"{self.folder} does not answer: {error}") from error

    def optimize(self, reclaim: bool = False) -> None:
        """Build the search graph and flush. Copy all points if that frees much space.

        With `reclaim`, copy them if any were removed or replaced.
        """
        self.check_writable()
        with self._writing:
            if reclaim and (self.folder / STALE).exists():
                self._require(4 * occupied(self._version() / "segments"), "a copy of an index")
                self._copy()
                (self.folder / STALE).unlink()
            else:
                self._build_graph()
                self.flush()
                self._shorten_log()

    def _build_graph(self) -> None:
        segments = occupied(self._version() / "segments")
        # The engine builds new segments, with graph and int8, beside the old ones, then swaps them.
        self._require(segments + segments // 2, "the graph of an index")
        self.shard.optimize()

    def _shorten_log(self) -> None:
        """Copy all points to a next version if the log is too long (up to 68 MB in 0.1.0).

        The engine keeps up to two segments of a log, and their size is fixed when the shard is
        created. Entries must not be deleted from a log: the engine numbers writes by it and skips
        writes whose number it has seen.
        """
        log = occupied(self._version() / "wal")
        segments = occupied(self._version() / "segments")
        if log <= max(LOG_LIMIT, segments):
            return
        if shutil.disk_usage(self.folder).free < 4 * segments + RESERVE:
            return  # keep the long log until there is enough space for a copy
        self._copy()

    def _copy(self) -> None:
        """Copy all points to a next version and build its graph."""
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

    def add_words(self) -> None:
        """Give words to all captions that lack them. An interrupted call can be repeated."""
        self.check_writable()
        if self.config.has_words:
            return
        with self._writing:
            if not has_words(self._version()):
                self._require(RESERVE, "the words of captions")
                self._update(edge.UpdateOperation.create_sparse_vector(WORDS, edge.Modifier.Idf), 0)
            for points in batched(self.points(), SCROLL_VECTORS):
                size = sum(size_written(point) for point in points)
                self._require(size, "the words of captions")
                rows = [
                    edge.PointVectors(point.id, words)
                    for point in points
                    if (words := words_vector(point))
                ]
                if rows:
                    self._update(edge.UpdateOperation.update_vectors(rows), size)
            self.flush()
            config = replace(self.config, words=WORDS_RULE)
            _write(self.folder / RECORD, json.dumps(config.record(), indent=2))
            self.config = config

    def _version(self) -> Path:
        return self.folder / (self.folder / "current").read_text()

    def flush(self) -> None:
        """Write all points to disk."""
        self.shard.flush()
        self._unflushed = 0

    def close(self) -> None:
        """Close the shard and release the folder, or delete the private copy."""
        self.shard.close()
        self._held.close()


def _open_current(
    folder: Path, config: CollectionConfig
) -> tuple[CollectionConfig, edge.EdgeShard]:
    """Open the current version in a folder that this process owns, or create the first one.

    Returns:
        The configuration of the collection, and the shard.

    """
    current, record = folder / "current", folder / RECORD
    if record.exists():
        made = folder / (current.read_text() if current.exists() else "")
        stored = settings_of(made) if (made / CONFIG_FILE).exists() else config.settings
        config = config.of_record(json.loads(record.read_text()), stored, str(folder))
    else:
        _write(record, json.dumps(config.record(), indent=2))
    if not current.exists():
        name = version(config.space, folder.name, 1)
        shutil.rmtree(folder / name, ignore_errors=True)  # left by a process that was killed
        shard = _create_shard(folder / name, config)
        _write(current, name)
        return config, shard
    name = current.read_text()
    if name not in versions(config.space, folder.name, _folders(folder)):
        raise ValueError(
            f"{current} contains {name!r}, which is no version in that folder; restore "
            f"the folder from a backup, or delete it and ingest again"
        )
    _remove_others(folder, config, name)  # left by rebuilds that were killed
    return config, edge.EdgeShard.load(str(folder / name))


def _create_shard(path: Path, config: CollectionConfig) -> edge.EdgeShard:
    # `EdgeConfig` has no `wal_options` in Python, but the shard's configuration file has. The
    # engine takes settings from the file if the argument lacks them. The log cannot be turned off:
    # a point whose write was interrupted would have its new vector and its old payload.
    path.mkdir(parents=True)
    _write(path / CONFIG_FILE, json.dumps({"vectors": {}, "wal_options": LOG}))
    shard = edge.EdgeShard.load(str(path), creation_of(config))
    for field in INDEXED:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    return shard


def _remove_others(folder: Path, config: CollectionConfig, name: str) -> None:
    """Remove all versions but `name`: replaced ones, and those of rebuilds that were killed."""
    for other in versions(config.space, folder.name, _folders(folder)):
        if other != name:
            shutil.rmtree(folder / other, ignore_errors=True)  # the next open retries


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _write(path: Path, text: str) -> None:
    """Replace a file atomically, so that a reader sees old or new content, even after a crash."""
    with replacing_file(path) as scratch, scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
