"""What a collection is, wherever it lies: its record, its versions, and what a backend does.

Shapes: N entries, E joint embedding size.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

from mla_ray.model.recognition import recognised

SCHEMA = 3
"""Of the stored points and of the record beside them; all points are of rule 2."""
MIXED_SCHEMA = 2
"""Some points may be of the rule before. Other schemas are refused."""
VECTOR = "joint"
"""Name of a point's vector; others may be added beside it one day."""
SCROLL = 1000
"""Payloads a request."""
HNSW_EF = 256
"""Candidates kept while searching the graph: found 99.7 % of the true top 10, 128 found 99 %."""
QUANTILE = 0.99
"""Of the components within int8's range; outliers are cut to its ends."""
OVERSAMPLING = 2.0
"""Times as many candidates of int8 as asked for, then ranked by float32."""
INDEXED = ("language", "source", "image_id")
"""Fields of the payload that searches filter by."""
MAX_LANGUAGES = 10_000

STAYS = "It stays so; index again under another collection name for the fingerprint of today."
"""What to do about a collection with a fingerprint of the rule of before."""

Quantization = Literal["int8"]
Payload = dict[str, Any]
"""What is kept beside a vector: JSON."""
PayloadFilter = dict[str, str | None]
"""Payload fields and the value each must have; None: the field must be missing."""


@dataclass(frozen=True)
class VectorSpace:
    """Whose vectors a collection holds. Vectors of two natives cannot be compared."""

    native: str  # "emoji-clip"
    fingerprint: str  # hex
    dim: int  # E
    fingerprint_v1: str = ""  # by the rule of before, which collections may have

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{12,}", self.fingerprint):
            raise ValueError(
                f"native {self.native!r}: fingerprint {self.fingerprint!r} is not 12 or more "
                "lower-case hex digits; pass the native's own fingerprint"
            )
        if self.dim < 1:
            raise ValueError(f"native {self.native!r}: dim is {self.dim}, must be at least 1")


class Point(NamedTuple):
    id: str  # UUID
    vector: list[float]  # [E], unit length
    payload: Payload


Record = dict[str, Any]
"""`CollectionConfig` as JSON."""


@dataclass(frozen=True)
class CollectionConfig:
    """What a collection is made as; the record of it is kept beside the points."""

    space: VectorSpace
    quantization: Quantization | None
    schema: int = SCHEMA

    def record(self) -> Record:
        return {"schema": self.schema, **_owner(self.space), "quantization": self.quantization}

    def rebuilt(self) -> "CollectionConfig":
        """Of a version that is made now."""
        return replace(self, schema=SCHEMA)

    def of_record(self, record: Any, where: str) -> "CollectionConfig":
        """That of the collection with this record; ValueError if it is another than what was asked.

        A collection keeps the fingerprint that it was made with, whatever its rebuilds: it is in
        the names of its versions and the ids of its points, which processes that have it open go on
        with.
        """
        space = self.space
        if not isinstance(record, dict) or not {"schema", *_owner(space)} <= record.keys():
            raise ValueError(
                f"{where} does not say whose vectors it holds (found {record!r}); it was made by "
                "other software or on a server older than Qdrant 1.16: choose another collection "
                "name"
            )
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
        quantization = record.get("quantization")
        if self.quantization not in (None, quantization):
            raise ValueError(
                f"{where} was made with quantization {quantization!r}, not {self.quantization!r}, "
                "and stays so; open it without, or ingest again under another collection name"
            )
        return CollectionConfig(
            replace(space, fingerprint=record["fingerprint"]), quantization, record["schema"]
        )


def _owner(space: VectorSpace) -> Record:
    """What a record says of whose vectors a collection holds."""
    return {"native": space.native, "fingerprint": space.fingerprint, "dim": space.dim}


class FoundPoint(Protocol):
    """A point as an engine hands it out, embedded or by a server."""

    @property
    def payload(self) -> Payload | None: ...


class ScoredPoint(FoundPoint, Protocol):
    """One that was searched for."""

    @property
    def score(self) -> float: ...


class FacetHit(Protocol):
    """A value of a field, and how many points have it."""

    @property
    def value(self) -> object: ...

    @property
    def count(self) -> int: ...


def payloads_and_scores(points: Iterable[ScoredPoint]) -> list[tuple[Payload, float]]:
    """What `CollectionBackend.search` gives."""
    return [(point.payload or {}, point.score) for point in points]


def scrolled(page_from: Callable[[Any], tuple[Sequence[FoundPoint], Any]]) -> Iterator[Payload]:
    """The payloads of all pages.

    Args:
        page_from: an engine's own offset, None for the beginning, to the points of a page and the
            offset of the next; None after the last.

    """
    offset: Any = None
    while True:
        points, offset = page_from(offset)
        yield from (point.payload or {} for point in points)
        if offset is None:
            return


def counts_by_value(hits: Iterable[FacetHit]) -> dict[str, int]:
    """What `CollectionBackend.facet` gives."""
    return {str(hit.value): hit.count for hit in hits}


class CollectionBackend(Protocol):
    """One collection somewhere."""

    config: CollectionConfig

    def check_writable(self) -> None:
        """Raise a PermissionError if it can be searched alone."""

    def upsert(self, points: list[Point]) -> None: ...

    def delete(self, ids: list[str], where: PayloadFilter) -> None:
        """Remove those of the points `ids` that `where` fits."""

    def search(
        self, vector: list[float], limit: int, where: PayloadFilter
    ) -> list[tuple[Payload, float]]:
        """Payloads and cosines, best first, ties in any order."""

    def scroll(self, where: PayloadFilter) -> Iterator[Payload]:
        """Payloads of all that fits, in the order of point ids."""

    def count(self, where: PayloadFilter) -> int: ...

    def facet(self, field: str) -> dict[str, int]: ...

    def rebuild(self) -> AbstractContextManager["CollectionBackend"]:
        """An empty next version; takes this one's place on leaving, unless by an exception."""

    def ping(self) -> None: ...

    def optimize(self) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def version(space: VectorSpace, collection: str, number: int) -> str:
    return f"{collection}-{space.fingerprint[:12]}-v{number}"


def versions(space: VectorSpace, collection: str, names: Iterable[str]) -> dict[str, int]:
    """Those of `names` that are versions of this collection, and their numbers."""
    pattern = re.compile(re.escape(f"{collection}-{space.fingerprint[:12]}-v") + r"([1-9][0-9]*)")
    matches = [pattern.fullmatch(name) for name in names]
    return {match[0]: int(match[1]) for match in matches if match}


def next_version(space: VectorSpace, collection: str, names: Iterable[str]) -> str:
    taken = versions(space, collection, names).values()
    return version(space, collection, max(taken, default=0) + 1)


def check_kept(name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise RuntimeError(
            f"{name} is gone: another rebuild of the collection ended first and took its place; "
            "let one process rebuild at a time, and run this one again if its data is newer"
        )


def no_such_collection(where: str) -> LookupError:
    return LookupError(f"{where} does not exist; ingest into it first, or open with create=True")
