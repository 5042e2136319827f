"""Collections of captions and images in Qdrant: one interface for three backends.

- `http(s)://host:port`: a Qdrant server, 1.16 or newer, for any number of processes. The API key
  is `QDRANT_API_KEY`. If the URL has no port, qdrant-client uses 6333, also for https.
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient

from mla_ray.index.backend import (
    MIXED_SCHEMA,
    CollectionBackend,
    CollectionConfig,
    PayloadFilter,
    Point,
    Quantization,
    VectorSpace,
)
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.entry import (
    NAMESPACE,
    Conditions,
    Contents,
    Entry,
    EntryPage,
    ScoredEntry,
    entry_of,
    id_of,
    point_id,
)
from mla_ray.index.limits import MAX_K, MAX_OFFSET, MAX_PAGE
from mla_ray.index.server import ServerBackend, connect
from mla_ray.model.directions import faults, norms

IMAGES, CAPTIONS = "images", "captions"
"""Names of collections."""
RULE, FORMER_RULE = 2, 1
"""Rules of point ids. Rule 2: source, id, language. Rule 1: native, id, language."""
MAX_TIES = 10_000
"""Most entries with equal scores that are read beyond a page to order them by id."""
BATCH = 256
"""Points per request. At E = 1024 they are about 5 MB of JSON; a server accepts 32 MB."""
DECIMALS = 6
"""Decimals of a score. Finer differences are float32 noise and would order ties at random."""


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
        quantization: Quantization | None = None,
    ) -> "CaptionIndex":
        """Open a collection.

        All other methods can raise the same RuntimeError and ConnectionError. Methods that write
        can raise the same OSError.

        Args:
            url: A Qdrant server, `edge:folder` or `:memory:`.
            space: The native whose vectors the collection holds.
            collection: Name of the collection.
            create: Create the collection if it does not exist.
            quantization: With "int8", graph search and scan use vectors of a quarter of the size,
                and float32 vectors rank the candidates. A collection keeps its quantization, even
                after rebuilds. None accepts any existing quantization.

        Raises:
            ValueError: The collection holds vectors of another native, it has another
                quantization, or a name or URL is malformed.
            LookupError: The collection does not exist, and `create` is False.
            RuntimeError: Another process owns the folder, or the server refuses the request.
            ConnectionError: No server answers.
            OSError: There is too little disk space (ENOSPC).

        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", collection):
            raise ValueError(
                f"collection name {collection!r}: use 1 to 63 of a-z, 0-9, '_' and '-', "
                "the first a letter or digit"
            )
        config = CollectionConfig(space, quantization)
        if url == ":memory:":
            local = QdrantClient(":memory:")
            backend: CollectionBackend = ServerBackend.open(local, url, config, collection, create)
            return cls(backend, backend.config.space)
        scheme, _, rest = url.partition(":")
        if scheme == "edge" and rest:
            folder = Path(rest).expanduser().resolve() / collection
            backend = EdgeBackend.open(folder, config, create)
            return cls(backend, backend.config.space)
        client = connect(url)
        with ExitStack() as undo:
            undo.callback(client.close)
            backend = ServerBackend.open(client, url, config, collection, create)
            undo.pop_all()
        return cls(backend, backend.config.space)

    def check_writable(self) -> None:
        """Raise a PermissionError if this process may not write to the collection's folder.

        All methods that write raise it, too. Searches in such a folder use a private copy.
        """
        self._backend.check_writable()

    def upsert(self, entries: Sequence[Entry], vectors: npt.NDArray[np.float32]) -> int:
        """Write entries and their vectors.

        An entry with the same source, id and language is replaced, also one written by mla-ray
        0.1.0. So it is safe to write entries twice. A running `rebuild` does not see these
        entries: they are lost when it ends, unless they are written to the new version, too.

        Args:
            entries: N entries.
            vectors: `[N, E]` float32, of any length but zero.

        Returns:
            N, the number of entries.

        Raises:
            ValueError: A vector is zero or not finite, or the shape is wrong. Nothing is written.

        """
        if len(entries) != len(vectors):
            raise ValueError(
                f"{len(entries)} entries but {len(vectors)} vectors; pass one vector an entry"
            )
        lengths = self._norms(vectors)  # of all rows, so that an invalid one prevents all writes
        for start in range(0, len(entries), BATCH):
            rows = slice(start, start + BATCH)
            units = (vectors[rows] / lengths[rows, None]).astype(np.float32)
            self._backend.upsert(
                [
                    Point(point_id(entry), unit.tolist(), asdict(entry) | {"rule": RULE})
                    for entry, unit in zip(entries[rows], units, strict=True)
                ]
            )
            if self._is_mixed():  # remove the old point last, so that every search finds the entry
                self._remove(entries[rows], self._former_point_id)
        return len(entries)

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
    ) -> list[ScoredEntry]:
        """Return the entries nearest to a vector, best first.

        Entries with equal scores are ordered by id, language and source.

        Args:
            vector: `[E]` float32, of any length but zero.
            k: Most entries to return, 1 to `MAX_K`.
            language: Return only entries of exactly this language; "" for images.
            source: Return only entries of exactly this source.
            offset: Number of best entries to skip, at most `MAX_OFFSET`.
            min_score: Return only entries with at least this cosine, -1 to 1.

        Raises:
            ValueError: `vector`, `k`, `offset` or `min_score` is invalid.

        """
        if not 1 <= k <= MAX_K:
            raise ValueError(f"k is {k}, must be 1 to {MAX_K}; page with offset for more")
        if not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"offset is {offset}, must be 0 to {MAX_OFFSET}; narrow the search")
        if min_score is not None and not -1 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}, must be -1 to 1, as cosines are")
        if vector.ndim != 1:
            raise ValueError(f"query has shape {list(vector.shape)}, must be [{self.space.dim}]")
        unit = (vector / self._norms(vector[None])).astype(np.float32).tolist()
        where = _where(language=language, source=source)
        # Engines order equal scores arbitrarily. One more entry than requested shows whether the
        # page ends inside a tie. If so, read on until the tie is complete and can be ordered.
        end = offset + k
        limit = end + 1
        while True:
            hits = [
                ScoredEntry(entry_of(payload), round(score, DECIMALS))
                for payload, score in self._backend.search(unit, limit, where)
            ]
            tie_is_cut = len(hits) == limit and hits[-1].score == hits[end - 1].score
            if not tie_is_cut or limit >= end + MAX_TIES:
                break
            limit = min(2 * limit, end + MAX_TIES)
        hits.sort(key=lambda hit: (-hit.score, hit.entry.id, hit.entry.language, hit.entry.source))
        # An engine's own threshold compares unrounded scores. A hit whose rounded score equals
        # `min_score` would then be returned or not at random.
        return [hit for hit in hits[offset:end] if min_score is None or hit.score >= min_score]

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
    def rebuild(self) -> Iterator["CaptionIndex"]:
        """Yield an empty next version that replaces the current one when the `with` block ends.

            with index.rebuild() as fresh:
                fresh.upsert(entries, vectors)

        Searches use the current version until then. An exception drops the new version and keeps
        the current one. `fresh` must not be used after the block.

        Raises:
            RuntimeError: Another rebuild of the collection ended first.

        """
        with self._backend.rebuild() as fresh:
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

    def _norms(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the lengths `[N]` float64 of vectors `[N, E]`, or raise a ValueError.

        The embedded engine would accept zero vectors and values that are not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.space.dim:
            raise ValueError(
                f"vectors have shape {list(vectors.shape)}, native {self.space.native!r} makes "
                f"[N, {self.space.dim}]; encode with that native"
            )
        lengths = norms(vectors)
        if bad := faults(lengths):
            row, fault = next(iter(bad.items()))
            raise ValueError(
                f"vector {row} is {fault} ({len(bad)} of {len(vectors)} are bad) and has no "
                "direction; drop these rows, or check the encoder"
            )
        return lengths


@contextmanager
def open_collections(
    url: str, space: VectorSpace, quantization: Quantization | None = None
) -> Iterator[dict[str, CaptionIndex]]:
    """Yield the collections `images` and `captions`, open for writing; create them if missing.

    Open them before expensive work, so that an error comes first.

    Raises:
        PermissionError: This process may not write to a collection's folder.

    """
    with ExitStack() as stack:
        collections = {}
        for name in (IMAGES, CAPTIONS):
            index = CaptionIndex.open(url, space, name, quantization=quantization)
            collections[name] = stack.enter_context(index)
            index.check_writable()
        yield collections


def _where(**fields: str | None) -> PayloadFilter:
    """Return a filter of the fields that are not None."""
    return {field: value for field, value in fields.items() if value is not None}
