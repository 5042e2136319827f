"""Collections of captions and images in Qdrant: one interface for three backends.

- `http(s)://host:port`: a Qdrant server, 1.16 or newer, for any number of processes. The API key
  is `QDRANT_API_KEY`. If the URL has no port, qdrant-client uses 6333, also for https. Projects on
  one server have prefixes: `http://host:port/?prefix=shop`.
  `grpc(s)://host:port` is the same server through gRPC, by default at port 6334.
- `edge:folder`: Qdrant's engine in this process, with one owner at a time. The data is in
  `folder/<collection>`.
- `:memory:`: qdrant-client's exact search in Python, for tests. Closing it deletes the data.

Searches use a name that refers to the current version: an alias on a server, the file `current` in
a folder. A rebuild fills the next version and then moves the name, so no search sees a partial
collection.

Shapes: N entries, E joint embedding size.
"""

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt

from mla_ray.index.backend import (
    MIXED_SCHEMA,
    SCROLL,
    CollectionBackend,
    CollectionConfig,
    PayloadFilter,
    Point,
    VectorSpace,
)
from mla_ray.index.entry import (
    FORMER_RULE,
    NAMESPACE,
    Conditions,
    Contents,
    Entry,
    EntryPage,
    ScoredEntry,
    entry_of,
    id_of,
    of_rule,
    payload_of,
    point_id,
)
from mla_ray.index.lexical import QueryText
from mla_ray.index.limits import MAX_PAGE
from mla_ray.index.opening import backend_at
from mla_ray.index.search import Search, check, pages
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings
from mla_ray.index.vectors import lengths_of, unit

IMAGES, CAPTIONS = "images", "captions"
"""Names of collections."""
BATCH = 256
"""Points per request. At E = 1024 they are about 5 MB of JSON; a server accepts 32 MB."""


class CaptionIndex:
    """Collection of captions or images of one native, searched by cosine similarity.

    Use `CaptionIndex.open` to create one.
    """

    def __init__(self, backend: CollectionBackend, space: VectorSpace) -> None:
        self.space = space
        self._backend = backend
        self._mixed: bool | None = None  # whether there are points of FORMER_RULE; None: unknown

    @classmethod
    def open(
        cls,
        url: str,
        space: VectorSpace,
        collection: str = "captions",
        *,
        create: bool = True,
        settings: IndexSettings = ENGINE_DEFAULTS,
        timeout_s: int | None = None,
    ) -> "CaptionIndex":
        """Open a collection.

        All other methods can raise the same RuntimeError and ConnectionError. Methods that write
        can raise the same OSError.

        Args:
            url: A Qdrant server, `edge:folder` or `:memory:`.
            space: The native whose vectors the collection holds.
            collection: Name of the collection.
            create: Create the collection if it does not exist.
            settings: Settings of a collection that is created. A collection keeps its settings,
                even after rebuilds. Settings that are not given accept any existing ones.
            timeout_s: Time limit of one request to a server in seconds.

        Raises:
            ValueError: A folder holds vectors of another native, a collection has other settings
                or the engine lacks one of them, or a name or URL is malformed.
            LookupError: The collection does not exist, and `create` is False.
            RuntimeError: Another process owns the folder, or the server refuses the request.
            ConnectionError: No server answers.
            OSError: The folder or the server has too little disk space (ENOSPC).

        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", collection):
            raise ValueError(
                f"collection name {collection!r}: use 1 to 63 of a-z, 0-9, '_' and '-', "
                "the first a letter or digit"
            )
        config = CollectionConfig(space, settings)
        backend = backend_at(url, config, collection, create, timeout_s)
        return cls(backend, backend.config.space)

    def check_writable(self) -> None:
        """Raise a PermissionError if this process may not write to the collection's folder.

        All methods that write raise it, too. Searches in such a folder use a private copy. A server
        that refuses to write raises a RuntimeError.
        """
        self._backend.check_writable()

    def upsert(
        self,
        entries: Sequence[Entry],
        vectors: npt.NDArray[np.float32],
        hashes: Sequence[str | None] | None = None,
    ) -> int:
        """Write entries and their vectors.

        An entry with the same source, id and language is replaced, also one written by mla-ray
        0.1.0. So it is safe to write entries twice. A running `rebuild` does not see these
        entries: they are lost when it ends, unless they are written to the new version, too.

        Args:
            entries: N entries.
            vectors: `[N, E]` float32, of any length but zero.
            hashes: Hash of each entry (`Encoders.hash_of`), or None. Without hashes, the next
                `mla index` of these entries encodes them again.

        Returns:
            N, the number of entries.

        Raises:
            ValueError: A vector is zero or not finite, or the shape is wrong. Nothing is written.

        """
        if len(entries) != len(vectors):
            raise ValueError(
                f"{len(entries)} entries but {len(vectors)} vectors; pass one vector an entry"
            )
        hashes = hashes or [None] * len(entries)
        # Of all rows, so that an invalid one prevents all writes.
        lengths = lengths_of(vectors, self.space)
        for start in range(0, len(entries), BATCH):
            rows = slice(start, start + BATCH)
            units = (vectors[rows] / lengths[rows, None]).astype(np.float32)
            self.write(
                [
                    Point(point_id(entry), unit.tolist(), payload_of(entry, hash_))
                    for entry, unit, hash_ in zip(entries[rows], units, hashes[rows], strict=True)
                ]
            )
        return len(entries)

    def hashes(self, entries: Sequence[Entry]) -> list[str | None]:
        """Return the hash that each entry was written with, or None if there is none.

        There is none if the entry does not exist or was written without a hash.
        """
        ids = [point_id(entry) for entry in entries]
        found: dict[str, str] = {}
        for start in range(0, len(ids), SCROLL):
            found |= self._backend.hashes(ids[start : start + SCROLL])
        return [found.get(id_) for id_ in ids]

    def write(self, points: Sequence[Point]) -> None:
        """Write points of `points()` of another collection of the same native, at most `BATCH`."""
        self._backend.upsert(list(points))
        if self._is_mixed():  # remove the old point last, so that every search finds the entry
            self._remove([entry_of(point.payload) for point in points], self._former_point_id)

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors. Points of `FORMER_RULE` get the id of `RULE`."""
        return map(of_rule, self._backend.points())

    def stored(self, points: Sequence[Point]) -> dict[str, Point]:
        """Return those of these points that are in this collection, by id, as stored here."""
        found = {point.id: point for point in self._backend.retrieve([p.id for p in points])}
        if self._is_mixed():
            entries = [entry_of(point.payload) for point in points if point.id not in found]
            former = self._backend.retrieve([self._former_point_id(entry) for entry in entries])
            found |= {point.id: point for point in map(of_rule, former)}
        return found

    def delete(self, entries: Sequence[Entry]) -> int:
        """Remove entries by source, id and language. Return how many existed.

        No search that starts afterwards finds them. Their data stays on disk until
        `optimize(reclaim=True)`. An entry that is written again is there again. A running `rebuild`
        does not see the removal.
        """
        removed = self._remove(entries, point_id)
        if self._is_mixed():
            removed += self._remove(entries, self._former_point_id)
        return removed

    def delete_matching(self, **conditions: Unpack[Conditions]) -> int:
        """Remove all entries that meet every condition, as `delete` does. See `Conditions`.

        Returns:
            The number of entries removed. On a server they are counted just before.

        Raises:
            ValueError: There is no condition.

        """
        where = _where(**conditions)
        if not where:
            raise ValueError("no condition is given; give id, image_id, language or source")
        return self._backend.delete(where)

    def search(
        self,
        vector: npt.NDArray[np.float32],
        k: int = 10,
        *,
        language: str | None = None,
        source: str | None = None,
        offset: int = 0,
        min_score: float | None = None,
        hybrid: QueryText | None = None,
    ) -> list[ScoredEntry]:
        """Return the entries nearest to a vector, best first.

        Entries with equal scores are ordered by id, language and source.

        Args:
            vector: `[E]` float32, of any length but zero.
            k: Most entries to return, 1 to `limits.MAX_K`.
            language: Return only entries of exactly this language; "" for images.
            source: Return only entries of exactly this source.
            offset: Number of best entries to skip, at most
                `limits.MAX_OFFSET`.
            min_score: Return only entries with at least this cosine, -1 to 1. Not with `hybrid`.
            hybrid: Text of the query. Captions are then searched by its words, too, and both
                results are fused. Scores are those of the fusion, not cosines.

        Raises:
            ValueError: An argument is invalid, or the captions have no words (`add_words`).

        """
        return self.search_all([Search(vector, k, language, source, offset, min_score, hybrid)])[0]

    def search_all(self, searches: Sequence[Search]) -> list[list[ScoredEntry]]:
        """Return for each search what `search` returns. A server gets them in one request.

        Raises:
            ValueError: A search is invalid. None has run.

        """
        for search in searches:
            check(search)
            if search.hybrid and not self._backend.config.has_words:
                raise ValueError(
                    "the index was made without words, so it has no hybrid search; "
                    "`mla index --optimize` adds them"
                )
        units = [unit(search.vector, self.space) for search in searches]
        return [
            [ScoredEntry(entry_of(payload), score) for payload, score in page]
            for page in pages(self._backend, searches, units)
        ]

    def entries(self, **conditions: Unpack[Conditions]) -> Iterator[Entry]:
        """Yield all entries, or all that meet the conditions, in arbitrary order."""
        for payload in self._backend.scroll(_where(**conditions)):
            yield entry_of(payload)

    def page(
        self, limit: int, cursor: str | None = None, **conditions: Unpack[Conditions]
    ) -> EntryPage:
        """Return one page of the entries that meet the conditions.

        The order is that of point ids, which look random and never change. So an entry that exists
        during the whole listing is on exactly one page, whatever is written or removed meanwhile.

        Args:
            limit: Most entries of the page, 1 to `MAX_PAGE`.
            cursor: `next_cursor` of the previous page. None for the first page.
            conditions: Values that the entries must have.

        Raises:
            ValueError: `limit` or `cursor` is invalid.

        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit is {limit}, must be 1 to {MAX_PAGE}; use cursor for more")
        start = None if cursor is None else id_of(cursor)
        payloads, following = self._backend.page(_where(**conditions), limit, start)
        return EntryPage.of([entry_of(payload) for payload in payloads], following)

    def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have entries of an image, with the rule of their point ids.

        If a source has points of both rules, the rule is `RULE`.
        """
        rules: dict[str, int] = {}
        for payload in self._backend.scroll(_where(image_id=image_id)):
            rule = payload.get("rule", FORMER_RULE)
            rules[payload["source"]] = max(rule, rules.get(payload["source"], rule))
        return rules

    def count(self, **conditions: Unpack[Conditions]) -> int:
        """Return the number of entries, or of those that meet the conditions."""
        return self._backend.count(_where(**conditions))

    def languages(self) -> dict[str, int]:
        """Return the number of captions by language. Images have no language and do not count."""
        counts = self._backend.facet("language")
        return {language: counts[language] for language in sorted(counts) if language}

    def contents(self) -> Contents:
        """Return what the collection holds: numbers of entries, and whose vectors they have."""
        config = self._backend.config
        return Contents(
            entries=self.count(),
            languages=self.languages(),
            sources=dict(sorted(self._backend.facet("source").items())),
            space=config.space,
            quantization=config.quantization,
            schema=config.schema,
        )

    def ping(self) -> None:
        """Check that the collection can be reached. Fast; raises the same errors as `open`."""
        self._backend.ping()

    @contextmanager
    def rebuild(self, settings: IndexSettings | None = None) -> Iterator["CaptionIndex"]:
        """Yield an empty next version that replaces the current one when the `with` block ends.

            with index.rebuild() as fresh:
                fresh.upsert(entries, vectors)

        Searches use the current version until then. An exception drops the new version and keeps
        the current one. `fresh` must not be used after the block.

        Args:
            settings: Settings that change. The others stay as they are.

        Raises:
            ValueError: The engine lacks one of the settings.
            RuntimeError: Another rebuild of the collection ended first.

        """
        with self._backend.rebuild(settings) as fresh:
            yield CaptionIndex(fresh, self.space)
        self._mixed = None

    def optimize(self, *, reclaim: bool = False) -> None:
        """Build the search graph (HNSW) of the embedded engine, after a bulk upsert.

        A server builds its graph by itself. Without a graph the embedded engine scans all vectors.

        The embedded engine holds Python's GIL during the call, about 7 s for 24,000 vectors of 128
        dimensions on two busy cores. Call it from a job, not from a process that serves requests.

        Args:
            reclaim: Free the disk space of all entries that were removed or replaced. Otherwise an
                engine may keep 1,000 of them, or a fifth of a segment. The embedded engine copies
                the other entries to a next version, so it needs space for both. A server rewrites
                its segments, and the call waits for it.

        Raises:
            TimeoutError: A server has not finished within an hour. It continues by itself.

        """
        self._backend.optimize(reclaim)

    def add_words(self) -> None:
        """Give words to the captions of a collection that was made without them.

        Hybrid searches then work in this object, and elsewhere when the collection is opened again.
        Captions that others write meanwhile, with the collection opened before, get no words.
        Nothing is encoded. An interrupted call can be repeated.

        Raises:
            RuntimeError: The server is older than Qdrant 1.18.

        """
        self._backend.add_words()

    def flush(self) -> None:
        """Wait until all writes are on disk. A killed process loses no writes even without it."""
        self._backend.flush()

    def close(self) -> None:
        """Release the connection or the folder. Safe to call twice."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _is_mixed(self) -> bool:
        """Return whether there are points of `FORMER_RULE`. Older collections are queried once."""
        if self._mixed is None:
            may_be = self._backend.config.schema == MIXED_SCHEMA
            self._mixed = may_be and self._backend.count({"rule": None}) > 0
        return self._mixed

    def _remove(self, entries: Sequence[Entry], id_by_rule: Callable[[Entry], str]) -> int:
        ids, removed = defaultdict(list), 0
        for entry in entries:
            ids[entry.source].append(id_by_rule(entry))
        for source, of_source in ids.items():
            for start in range(0, len(of_source), BATCH):
                # An id of the former rule may belong to another source, so filter by source.
                chosen = of_source[start : start + BATCH]
                removed += self._backend.delete({"source": source}, chosen)
        return removed

    def _former_point_id(self, entry: Entry) -> str:
        # the fingerprint that the collection was created with
        fingerprint = self._backend.config.space.fingerprint
        return str(uuid.uuid5(NAMESPACE, json.dumps([fingerprint, entry.id, entry.language])))


def _where(**fields: str | None) -> PayloadFilter:
    """Return a filter of the fields that are not None."""
    return {field: value for field, value in fields.items() if value is not None}
