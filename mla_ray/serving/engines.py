"""What the engines take and return, and the engine of the index, without Ray.

The engines that encode are in `encoders`. An engine returns unit vectors and the errors by row. A
bad text, image or pack affects only its own rows. Does not import torch.

Shapes: N rows, E joint embedding size.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage, ScoredEntry
from mla_ray.index.lexical import QueryText
from mla_ray.index.search import Search
from mla_ray.model.directions import units
from mla_ray.serving.breaker import Breaker
from mla_ray.serving.schemas import Collection, ProblemKind

Vectors = npt.NDArray[np.float32]
Hashes = list[str | None] | None
"""Hash of each entry that is written (`Encoders.hash_of`); None if no entry has one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Name, fingerprint and embedding size of a server's native."""

    native: str
    fingerprint: str
    dim: int
    fingerprint_v1: str = ""
    """Fingerprint by the first rule, which the cards of older packs have."""


class Text(NamedTuple):
    """A text and the language to encode it in."""

    language: str
    text: str


class Fault(NamedTuple):
    """Reason why a row has no result."""

    kind: ProblemKind
    detail: str


@dataclass
class Encoded:
    """Encoded texts or images. A slice keeps the errors of its rows."""

    vectors: Vectors
    """Unit vectors `[N, E]` float32. The vector of a row in `errors` has no meaning."""
    unknown_tokens: npt.NDArray[np.float64]
    """Share of each text's tokens that is unknown, `[N]`, 0 to 1. 0 for an image."""
    errors: dict[int, Fault] = field(default_factory=dict)
    """Reason by row, for rows without a vector."""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of the files of the packs that encoded texts, by language and name."""

    @classmethod
    def empty(cls, rows: int, dim: int) -> Self:
        """Return zero vectors of the shape `[rows, dim]`, to be filled with `put`."""
        return cls(np.zeros((rows, dim), np.float32), np.zeros(rows))

    def put(
        self, rows: Sequence[int], features: npt.NDArray[np.float32], encoders: Sequence[str]
    ) -> None:
        """Normalize features and store them. A zero or non-finite feature becomes an error.

        Args:
            rows: Rows to fill.
            features: Features of these rows `[len(rows), E]` float32, of any norm.
            encoders: For each row, the name of its encoder for the error message.

        """
        vectors, faults = units(features)
        self.vectors[rows] = vectors
        for position, fault in faults.items():
            detail = f"{encoders[position]} gives a feature that is {fault}"
            self.errors[rows[position]] = Fault(ProblemKind.NOT_ENCODED, detail)
            log.warning(detail)

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> Self:
        errors = {
            position: self.errors[row]
            for position, row in enumerate(range(*rows.indices(len(self))))
            if row in self.errors
        }
        return type(self)(self.vectors[rows], self.unknown_tokens[rows], errors, self.files)


class IndexNotWritable(Exception):
    """The index can be searched but not written: its disk is full, or it is read-only."""


class Query(NamedTuple):
    """A vector search in one collection, with its page and filters."""

    collection: str
    vector: Vectors  # [E]
    k: int
    offset: int
    language: str | None
    source: str | None
    min_score: float | None = None
    hybrid: QueryText | None = None


class QueryResult(NamedTuple):
    """Hits of a query, or the reason why the search failed."""

    hits: list[ScoredEntry]
    fault: Fault | None = None


class IndexEngine:
    """Collections `images` and `captions` of one native.

    All methods but `close` raise `IndexUnavailable` if the index is on a server that is away.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        space: Vector space of the native whose vectors the index holds.
        timeout_s: Time limit of one request to a Qdrant server in seconds.

    """

    def __init__(self, url: str, space: VectorSpace, timeout_s: int | None = None) -> None:
        self.collections: dict[str, CaptionIndex] = {}
        self._breaker = Breaker(self._ping)
        try:
            for name in (IMAGES, CAPTIONS):
                self.collections[name] = CaptionIndex.open(url, space, name, timeout_s=timeout_s)
        except BaseException:
            self.close()
            raise

    def search(self, queries: Sequence[Query]) -> list[QueryResult]:
        """Run the queries of a collection together. A malformed query fails alone."""
        results: dict[int, QueryResult] = {}
        for name in self.collections:
            rows = [row for row, query in enumerate(queries) if query.collection == name]
            with self._breaker.guarding():
                found = self._search(name, [queries[row] for row in rows])
            results.update(zip(rows, found, strict=True))
        return [results[row] for row in range(len(queries))]

    def _search(self, collection: str, queries: Sequence[Query]) -> list[QueryResult]:
        """Search one collection. If a query is malformed, run each half, so that it fails alone."""
        searches = [
            Search(q.vector, q.k, q.language, q.source, q.offset, q.min_score, q.hybrid)
            for q in queries
        ]
        try:
            return [QueryResult(hits) for hits in self.collections[collection].search_all(searches)]
        except ValueError as error:  # the arguments of a query
            if len(queries) == 1:
                return [QueryResult([], Fault(ProblemKind.INVALID_REQUEST, str(error)))]
            half = len(queries) // 2
            return self._search(collection, queries[:half]) + self._search(
                collection, queries[half:]
            )

    def hashes(self, collection: str, entries: list[Entry]) -> list[str | None]:
        """Return the hash that each entry was written with, as `CaptionIndex.hashes` does."""
        with self._breaker.guarding():
            return self.collections[collection].hashes(entries)

    def upsert(
        self, collection: str, entries: list[Entry], vectors: Vectors, hashes: Hashes = None
    ) -> int:
        """Write entries, their vectors `[N, E]` and the hashes of their contents. Return N.

        On return all entries are on disk or in the log of the engine.

        Raises:
            IndexNotWritable: The disk is full, or the folder is read-only.

        """
        with self._breaker.guarding(), _writing():
            return self.collections[collection].upsert(entries, vectors, hashes)

    def delete(self, collection: str, conditions: Conditions) -> int:
        """Remove the entries that meet every condition. Return their number.

        Raises:
            IndexNotWritable: The disk is full, or the folder is read-only.

        """
        with self._breaker.guarding(), _writing():
            return self.collections[collection].delete_matching(**conditions)

    def page(
        self, collection: str, conditions: Conditions, limit: int, cursor: str | None
    ) -> EntryPage:
        """Return a page of the entries that meet every condition."""
        with self._breaker.guarding():
            return self.collections[collection].page(limit, cursor, **conditions)

    def contents(self) -> dict[Collection, Contents]:
        """Return what each collection holds."""
        with self._breaker.guarding():
            return {
                "images": self.collections[IMAGES].contents(),
                "captions": self.collections[CAPTIONS].contents(),
            }

    def languages(self) -> dict[str, int]:
        """Return the number of captions by language."""
        with self._breaker.guarding():
            return self.collections[CAPTIONS].languages()

    def sources(self, image_id: str) -> dict[str, int]:
        """Return the sources that have an image with this id, as `CaptionIndex.sources` does."""
        with self._breaker.guarding():
            return self.collections[IMAGES].sources(image_id)

    def check(self) -> None:
        """Raise an error if a collection is unreachable."""
        with self._breaker.guarding():
            self._ping()

    def _ping(self) -> None:
        for index in self.collections.values():
            index.ping()

    def close(self) -> None:
        """Close the collections."""
        self._breaker.close()
        for index in self.collections.values():
            index.close()


@contextmanager
def _writing() -> Iterator[None]:
    """Convert errors of writes in the `with` block to `IndexNotWritable`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        log.error("%s", error)  # logged here only: the text names a folder of the server
        raise IndexNotWritable(error.strerror) from error


def torch_thread() -> ThreadPoolExecutor:
    """Return an executor with one thread, for all PyTorch calls of a process, loading included.

    OpenMP keeps a pool of helper threads for every thread that called PyTorch. If the helpers
    outnumber the cores, they stop spinning while they wait, and two threads are hardly faster than
    one.
    """
    return ThreadPoolExecutor(1, "torch")
