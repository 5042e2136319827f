"""Collections independent of where they are stored: record, versions and the backend's interface.

Shapes: N entries, E joint embedding size.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from mla_ray.index.lexical import WORDS_RULE, Words, words_of_caption
from mla_ray.index.limits import MAX_HYBRID
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings, Quantization
from mla_ray.model.recognition import recognised

SCHEMA = 3
"""Schema of the stored points and their record. All point ids follow rule 2."""
MIXED_SCHEMA = 2
"""Older schema: some point ids may follow rule 1. Schemas other than these two are refused."""
VECTOR = "joint"
"""Name of a point's vector."""
WORDS = "words"
"""Name of the sparse vector with the words of a caption. Images have none."""
CANDIDATES = MAX_HYBRID
"""Best points by vector, and as many by words, that a hybrid search ranks."""
RRF_K = 2
"""Constant of reciprocal rank fusion, Qdrant's default. A point scores 1 / (k + rank), with ranks
from 0, by vector and by words."""
SCROLL = 1000
"""Payloads per scroll request."""
SCROLL_VECTORS = 256
"""Points per scroll request with vectors. At E = 1024 they are about 5 MB of JSON."""
HASH = "hash"
"""Payload field with the hash of a point's content and of what encoded it. It may be missing."""
HNSW_EF = 256
"""Candidates kept during a search of the graph. 256 found 99.7 % of the true top 10, 128 found
99 %."""
QUANTILE = 0.99
"""Share of the components that int8 represents; the others are clipped."""
OVERSAMPLING = 2.0
"""Candidates from int8 vectors per requested hit. Float32 vectors rank these candidates."""
INDEXED = ("language", "source", "image_id")
"""Payload fields that searches filter by."""
SAME = 1e-6
"""Largest distance at which a unit vector counts as equal to the stored one.

Scores then differ by at most this, which is the precision to which they are rounded.
"""
MAX_LANGUAGES = 10_000
"""Most values that a facet returns."""

STAYS = (
    "The collection keeps it; index again under another collection name for today's fingerprint."
)
"""Remedy in the warning about a collection whose fingerprint was computed by the first rule."""

P = TypeVar("P")

Payload = dict[str, Any]
"""Data stored with a vector, as JSON."""
PayloadFilter = dict[str, str | None]
"""Required values by payload field; None if the field must be missing."""


@dataclass(frozen=True)
class VectorSpace:
    """Native whose vectors a collection holds. Vectors of two natives cannot be compared."""

    native: str  # "emoji-clip"
    fingerprint: str  # hex
    dim: int  # E
    fingerprint_v1: str = ""  # by the first rule, as older collections have it

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{12,}", self.fingerprint):
            raise ValueError(
                f"native {self.native!r}: fingerprint {self.fingerprint!r} is not 12 or more "
                "lower-case hex digits; pass the native's own fingerprint"
            )
        if self.dim < 1:
            raise ValueError(f"native {self.native!r}: dim is {self.dim}, must be at least 1")

    @property
    def fingerprints(self) -> list[str]:
        """The native's fingerprint, and that of the first rule if it is known."""
        return [found for found in (self.fingerprint, self.fingerprint_v1) if found]


class Point(NamedTuple):
    """Point of a collection: id, vector and payload."""

    id: str  # UUID
    vector: list[float]  # [E], unit length
    payload: Payload


def are_equal(one: Point, other: Point) -> bool:
    """Return whether two points have the same payload and, to `SAME`, the same vector."""
    if one.payload != other.payload or len(one.vector) != len(other.vector):
        return False
    away = np.asarray(one.vector, np.float64) - np.asarray(other.vector, np.float64)
    return bool(np.linalg.norm(away) <= SAME)


def words_of(point: Point) -> Words:
    """Return the words of a point's caption."""
    return words_of_caption(point.payload["caption"], point.payload["language"])


class Nearest(NamedTuple):
    """Search of one vector in a collection, or of a vector and words if these are given."""

    vector: list[float]  # [E], unit length
    limit: int
    where: PayloadFilter
    words: Words | None = None


Record = dict[str, Any]
"""`CollectionConfig` as JSON."""


@dataclass(frozen=True)
class ForeignLayout:
    """Where a collection of other software has what an entry of an image needs."""

    vector: str  # name of the vector; "" if it has none
    id_field: str | None  # payload field of the images' ids; None for the ids of the points
    source: str  # source of all its images

    @classmethod
    def of_record(cls, record: Record) -> Self | None:
        """Return the layout in the record of a collection. One of our own has none."""
        return cls(**record["layout"]) if "layout" in record else None


@dataclass(frozen=True)
class CollectionConfig:
    """Configuration of a collection. Its record is stored with the points."""

    space: VectorSpace
    settings: IndexSettings = ENGINE_DEFAULTS
    schema: int = SCHEMA
    words: int = WORDS_RULE  # rule of the captions' words; 0 if there are none
    layout: ForeignLayout | None = None  # of a collection of other software, adopted in place

    @property
    def has_words(self) -> bool:
        """Whether captions have words by the current rule, so that hybrid searches are possible."""
        return self.words == WORDS_RULE

    @property
    def quantization(self) -> Quantization | None:
        """Quantization of the vectors."""
        return self.settings.quantization

    def record(self) -> Record:
        """Return the configuration as the JSON that is stored with the points."""
        return {
            "schema": self.schema,
            **_owner(self.space),
            "quantization": self.quantization,
            "words": self.words,
            **({"layout": asdict(self.layout)} if self.layout else {}),
        }

    def rebuilt(self, settings: IndexSettings | None = None) -> "CollectionConfig":
        """Return the configuration of the next version: current rules, changed settings."""
        changed = self.settings if settings is None else settings.over(self.settings)
        return replace(self, settings=changed, schema=SCHEMA, words=WORDS_RULE)

    @classmethod
    def read(cls, record: Any, where: str) -> "CollectionConfig":
        """Return the configuration of an existing collection of any native, by its record.

        Of the settings it has the quantization only.

        Args:
            record: The record stored with the points.
            where: The collection's name or folder, for messages.

        Raises:
            ValueError: The record is not one of mla-ray, or has another schema.

        """
        if not is_ours(record):
            raise _not_ours(record, where)
        return cls(recorded_space(record)).of_record(record, ENGINE_DEFAULTS, where)

    def of_record(self, record: Any, stored: IndexSettings, where: str) -> "CollectionConfig":
        """Return the configuration of an existing collection with this record.

        A collection keeps the fingerprint that it was created with, even after rebuilds. The
        names of its versions and the ids of its points contain that fingerprint, and processes
        that have the collection open rely on them.

        Args:
            record: The record stored with the points.
            stored: The other settings of the collection; the record has the quantization.
            where: The collection's name or folder, for messages.

        Raises:
            ValueError: The record is not one of mla-ray or has another schema, native, dimension
                or setting than this configuration.

        """
        space = self.space
        if not is_ours(record):
            raise _not_ours(record, where)
        if record["schema"] not in (MIXED_SCHEMA, SCHEMA):
            raise ValueError(
                f"{where} has schema {record['schema']}, this version reads {MIXED_SCHEMA} and "
                f"{SCHEMA}; use the mla-ray that made it, or ingest again in another place or "
                "under another name"
            )
        ours = space.fingerprint, space.fingerprint_v1
        if record["dim"] != space.dim or not recognised(record["fingerprint"], *ours, where, STAYS):
            raise ValueError(
                f"{where} holds vectors of native {record['native']!r} (fingerprint "
                f"{record['fingerprint']}, {record['dim']} dimensions), not of {space.native!r} "
                f"(fingerprint {space.fingerprint}, {space.dim} dimensions); serve that native, or "
                "give this one a collection of its own name"
            )
        settings = stored.model_copy(update={"quantization": record.get("quantization")})
        self.settings.require_same(settings, where)
        return CollectionConfig(
            replace(space, fingerprint=record["fingerprint"]),
            settings,
            record["schema"],
            record.get("words", 0),
            ForeignLayout.of_record(record),
        )


def _owner(space: VectorSpace) -> Record:
    """Return the fields of a record that identify the native."""
    return {"native": space.native, "fingerprint": space.fingerprint, "dim": space.dim}


def is_ours(record: Any) -> bool:
    """Return whether the record of a collection is one of mla-ray."""
    keys = {"schema", "native", "fingerprint", "dim"}
    return isinstance(record, dict) and keys <= record.keys()


def recorded_space(record: Record) -> VectorSpace:
    """Return the native of a record of mla-ray."""
    return VectorSpace(str(record["native"]), str(record["fingerprint"]), int(record["dim"]))


def _not_ours(record: Any, where: str) -> ValueError:
    return ValueError(
        f"{where} does not say whose vectors it holds (found {record!r}); it was made by other "
        "software or on a server older than Qdrant 1.16: choose another collection name"
    )


class FoundPoint(Protocol):
    """Point as returned by the embedded engine or by a server."""

    @property
    def id(self) -> object:
        """Id of the point, a UUID."""
        ...

    @property
    def payload(self) -> Payload | None:
        """Payload of the point."""
        ...


class StoredPoint(FoundPoint, Protocol):
    """Point as returned with its id and its vectors."""

    @property
    def id(self) -> object:
        """Id of the point: a UUID, or its text."""
        ...

    @property
    def vector(self) -> Any:
        """Vectors of the point by name."""
        ...


class ScoredPoint(FoundPoint, Protocol):
    """Point found by a search."""

    @property
    def score(self) -> float:
        """Cosine similarity to the query."""
        ...


class FacetHit(Protocol):
    """Value of a field, with the number of points that have it."""

    @property
    def value(self) -> object:
        """Value of the field."""
        ...

    @property
    def count(self) -> int:
        """Number of points with this value."""
        ...


def payloads_and_scores(points: Iterable[ScoredPoint]) -> list[tuple[Payload, float]]:
    """Return payload and score of each point, as `CollectionBackend.search` does."""
    return [(point.payload or {}, point.score) for point in points]


def payloads_and_next(
    points: Iterable[FoundPoint], following: object
) -> tuple[list[Payload], str | None]:
    """Return the payload of each point and the next page's start, as `CollectionBackend.page`."""
    payloads = [point.payload or {} for point in points]
    return payloads, None if following is None else str(following)


def whole_points(points: Iterable[StoredPoint]) -> Iterator[Point]:
    """Yield each point with its vector, as `CollectionBackend.points` does."""
    for point in points:
        yield Point(str(point.id), list(point.vector[VECTOR]), point.payload or {})


def hashes_by_id(points: Iterable[StoredPoint]) -> dict[str, str]:
    """Return the hashes of those points that have one, as `CollectionBackend.hashes` does."""
    found = ((str(point.id), (point.payload or {}).get(HASH)) for point in points)
    return {id_: value for id_, value in found if value}


def scrolled(page_from: Callable[[Any], tuple[Sequence[P], Any]]) -> Iterator[P]:
    """Yield the items of all pages.

    Args:
        page_from: Takes the start of a page (None for the first one). Returns the items of that
            page and the start of the next one (None after the last page).

    """
    start: Any = None
    while True:
        items, start = page_from(start)
        yield from items
        if start is None:
            return


def counts_by_value(hits: Iterable[FacetHit]) -> dict[str, int]:
    """Return the number of points by value, as `CollectionBackend.facet` does."""
    return {str(hit.value): hit.count for hit in hits}


class CollectionBackend(Protocol):
    """Storage of one collection."""

    config: CollectionConfig

    def check_writable(self) -> None:
        """Raise a PermissionError if this process can search the collection but not write to it."""

    def upsert(self, points: list[Point]) -> None:
        """Write points; replace those with the same ids."""
        ...

    def delete(self, where: PayloadFilter, ids: list[str] | None = None) -> int:
        """Remove the points that match, or those of `ids` that match. Return how many."""
        ...

    def hashes(self, ids: list[str]) -> dict[str, str]:
        """Return the hashes of those points in `ids` that exist and have one, by id."""
        ...

    def search(self, queries: Sequence[Nearest]) -> list[list[tuple[Payload, float]]]:
        """Return payloads and scores of each query, best first, equal scores in any order.

        The scores are cosines, or those of reciprocal rank fusion if a query has words.
        """
        ...

    def page(
        self, where: PayloadFilter, limit: int, start: str | None
    ) -> tuple[list[Payload], str | None]:
        """Return payloads of points that match, in the order of point ids.

        Args:
            where: Required values.
            limit: Most points to return.
            start: Smallest id to return; None for the first page.

        Returns:
            The payloads, and `start` of the next page, which is None after the last page.

        """
        ...

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        """Yield the payloads of all points that match, in the order of point ids."""

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors, in the order of point ids."""

    def retrieve(self, ids: list[str]) -> list[Point]:
        """Return the points with these ids and their vectors, in any order; skip missing ones."""
        ...

    def count(self, where: PayloadFilter) -> int:
        """Return the number of points that match."""
        ...

    def facet(self, field: str) -> dict[str, int]:
        """Return the number of points by value of a payload field."""
        ...

    def rebuild(
        self, settings: IndexSettings | None = None
    ) -> AbstractContextManager["CollectionBackend"]:
        """Return a context manager of an empty next version, with these settings changed.

        The next version replaces the current one when the `with` block ends without an exception.
        """

    def ping(self) -> None:
        """Raise an error if the collection cannot be reached."""
        ...

    def optimize(self, reclaim: bool = False) -> None:
        """Build the search graph, if the backend does not do so by itself.

        With `reclaim`, also free the disk space of all points that were removed or replaced.
        """
        ...

    def add_words(self) -> None:
        """Give words to all captions that lack them."""
        ...

    def flush(self) -> None:
        """Wait until all writes are on disk."""
        ...

    def close(self) -> None:
        """Release the connection or the folder."""
        ...
