"""Collections of other software on a server, searched in place.

`mla collection adopt --in-place` makes them: the native's alias names the collection, and the
collection's metadata has our record beside what was there. Their points stay as they are, and the
software that made them goes on writing them.
"""

import errno
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qdrant_client import QdrantClient, models

from mla_ray.index.backend import (
    HNSW_EF,
    OVERSAMPLING,
    SCROLL_VECTORS,
    CollectionBackend,
    CollectionConfig,
    ForeignLayout,
    Nearest,
    Payload,
    PayloadFilter,
    Point,
)
from mla_ray.index.entry import Entry, entry_of, payload_of, point_id
from mla_ray.index.server import P, ServerBackend, scroll_records
from mla_ray.index.server_requests import field_of
from mla_ray.index.settings import IndexSettings

INTEGERS = 2**64
"""Number of integers that are ids of points. No UUID of RFC 9562 is as small a number."""

DIGITS = 20
"""Most digits of such an integer."""
NOTHING = models.HasIdCondition(has_id=[])
"""Condition that no point meets."""


class AdoptedBackend(ServerBackend):
    """Collection of other software. Its images can be searched and listed, but not written.

    Every point with the vector is an image. It has no language and no caption.
    """

    def __init__(
        self,
        client: QdrantClient,
        url: str,
        config: CollectionConfig,
        collection: str,
        name: str,
        layout: ForeignLayout,
    ) -> None:
        """Use an existing collection. Arguments are those of `ServerBackend`, and its layout."""
        super().__init__(client, url, config, collection, name)
        self._layout = layout

    def check_writable(self) -> None:
        """Raise a PermissionError."""
        raise self._not_writable()

    def upsert(self, points: list[Point]) -> None:
        """Raise a PermissionError."""
        raise self._not_writable()

    def delete(self, where: PayloadFilter, ids: list[str] | None = None) -> int:
        """Raise a PermissionError."""
        raise self._not_writable()

    @contextmanager
    def rebuild(self, settings: IndexSettings | None = None) -> Iterator[CollectionBackend]:
        """Raise a PermissionError."""
        self.check_writable()
        yield self

    def optimize(self, reclaim: bool = False) -> None:
        """Do nothing, or raise a PermissionError if `reclaim` is set."""
        if reclaim:
            raise self._not_writable()

    def add_words(self) -> None:
        """Do nothing: images have no words."""

    def hashes(self, ids: list[str]) -> dict[str, str]:
        """Return nothing: points of other software have no hashes."""
        return {}

    def retrieve(self, ids: list[str]) -> list[Point]:
        """Return nothing: points of other software have other ids."""
        return []

    def page(
        self, where: PayloadFilter, limit: int, start: str | None
    ) -> tuple[list[Payload], str | None]:
        """Return payloads of points that match, and the id of the point after them, as a UUID."""
        with self._reaching():
            points, following = self.client.scroll(
                self.name,
                scroll_filter=self._filter(where),
                limit=limit,
                offset=None if start is None else _key_of(start),
                with_payload=self._fields(),
            )
        payloads = [point.payload or {} for point in self._read(points)]
        return payloads, None if following is None else _uuid_of(following)

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors and with our ids, in the order of their own ids."""
        records = scroll_records(
            self.client,
            self.url,
            self.name,
            limit=SCROLL_VECTORS,
            scroll_filter=self._filter({}),
            with_payload=self._fields(),
            with_vectors=[self._layout.vector] if self._layout.vector else True,
        )
        for record in records:
            payload = self._payload(record)
            yield Point(point_id(entry_of(payload)), vector_of(record, self._layout), payload)

    def facet(self, field: str) -> dict[str, int]:
        """Return the number of points by value of a field that all images share."""
        value = {"language": "", "source": self._layout.source}[field]
        return {value: self.count({})}

    def _request(self, query: Nearest) -> models.QueryRequest:
        rescored = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        params = models.SearchParams(hnsw_ef=HNSW_EF, quantization=rescored)
        return models.QueryRequest(
            query=query.vector,
            using=self._layout.vector or None,
            limit=query.limit,
            filter=self._filter(query.where),
            params=None if self.local else params,
            with_payload=self._fields(),
        )

    def _read(self, points: Sequence[P]) -> Sequence[P]:
        return [point.model_copy(update={"payload": self._payload(point)}) for point in points]

    def _payload(self, point: models.Record | models.ScoredPoint) -> Payload:
        """Return the payload that an image of ours would have."""
        id_ = image_id_of(point, self._layout)
        image = Entry(id=id_, image_id=id_, language="", caption="", source=self._layout.source)
        return payload_of(image, None)

    def _fields(self) -> list[str] | bool:
        """Return the payload fields that are read. Others may be large."""
        return [self._layout.id_field] if self._layout.id_field else False

    def _filter(self, where: PayloadFilter) -> models.Filter:
        """Return a filter of the images that match."""
        must: list[models.Condition] = []
        if self._layout.vector:
            must.append(models.HasVectorCondition(has_vector=self._layout.vector))
        shared = {"language": "", "source": self._layout.source}
        for field, value in where.items():
            if field not in ("id", "image_id"):
                if value != shared.get(field, value):
                    must.append(NOTHING)
            elif value is not None:
                must.append(self._id_is(value))
        return models.Filter(must=must)

    def _id_is(self, id_: str) -> models.Condition:
        """Return a condition of the image with an id."""
        if self._layout.id_field is None:
            key = _point_id(id_)
            return NOTHING if key is None else models.HasIdCondition(has_id=[key])
        values: list[str | int] = [id_, *([int(id_)] if _is_integer(id_) else [])]
        matches: list[models.Condition] = [
            models.FieldCondition(key=self._layout.id_field, match=models.MatchValue(value=value))
            for value in values
        ]
        return models.Filter(should=matches)

    def _not_writable(self) -> PermissionError:
        return PermissionError(
            errno.EACCES,
            "the collection was adopted in place, so mla-ray only reads it: write to it with the "
            "software that made it, or copy it with `mla collection adopt` without --in-place",
            f"{self.url} {self.name}",
        )


def server_backend(
    client: QdrantClient, url: str, config: CollectionConfig, collection: str, name: str
) -> ServerBackend:
    """Return the backend of an existing collection, our own or an adopted one.

    Arguments are those of `ServerBackend`.
    """
    if config.layout is None:
        return ServerBackend(client, url, config, collection, name)
    return AdoptedBackend(client, url, config, collection, name, config.layout)


def image_id_of(point: models.Record | models.ScoredPoint, layout: ForeignLayout) -> str:
    """Return the id of a point's image: that of the payload field, else that of the point."""
    found = field_of(point.payload or {}, layout.id_field) if layout.id_field else None
    return str(found) if isinstance(found, str | int) and found != "" else str(point.id)


def vector_of(point: models.Record, layout: ForeignLayout) -> list[float]:
    """Return the vector `[E]` of a point that has one."""
    vector: Any = point.vector
    return list(vector[layout.vector] if layout.vector else vector)


def _uuid_of(key: int | str | uuid.UUID) -> str:
    """Return the id of a point as a UUID, of which `_key_of` is the inverse."""
    return str(uuid.UUID(int=key)) if isinstance(key, int) else str(key)


def _key_of(text: str) -> int | str:
    number = uuid.UUID(text).int
    return number if number < INTEGERS else text


def _point_id(id_: str) -> int | str | None:
    """Return the id of the point whose text this is, or None if it can be no id."""
    if _is_integer(id_):
        return int(id_)
    try:
        return id_ if str(uuid.UUID(id_)) == id_ else None
    except ValueError:
        return None


def _is_integer(id_: str) -> bool:
    """Return whether a text is an integer as Qdrant's ids and payloads are written."""
    is_number = id_.isascii() and id_.isdecimal() and len(id_) <= DIGITS
    return is_number and str(int(id_)) == id_ and int(id_) < INTEGERS
