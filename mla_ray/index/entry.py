"""Entries of a collection: what identifies them, pages of them, and their numbers.

A point's id is computed from source, id and language of its entry (rule 2, stored in the payload).
In mla-ray 0.1.0 it was computed from native, id and language (rule 1), so tables with the same
image ids overwrote each other's points. Collections of 0.1.0 can be read. A write replaces the
points of its entries by points of rule 2.
"""

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self, TypedDict

from mla_ray.index.backend import HASH, Payload, Point, VectorSpace
from mla_ray.index.settings import Quantization

RULE, FORMER_RULE = 2, 1
"""Rules of point ids. Rule 2: source, id, language. Rule 1: native, id, language."""
NAMESPACE = uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11")
"""UUID namespace of the point ids. It must never change."""


@dataclass(frozen=True)
class Entry:
    """One caption or one image."""

    id: str  # id of the caption or the image
    image_id: str
    language: str  # BCP-47; "" for an image
    caption: str  # "" for an image
    source: str  # data set or collection it came from

    @property
    def key(self) -> bytes:
        """Hash (16 bytes) of source, id and language. As a UUID it is the point's id."""
        # JSON keeps the three parts apart; joined strings could be equal for different entries.
        name = json.dumps([self.source, self.id, self.language])
        return uuid.uuid5(NAMESPACE, name).bytes


@dataclass(frozen=True)
class ScoredEntry:
    """Entry found by a search, with its score."""

    entry: Entry
    score: float  # cosine, rounded to DECIMALS


class EntryPage(NamedTuple):
    """One page of a listing."""

    entries: list[Entry]
    next_cursor: str | None  # None after the last page

    @classmethod
    def of(cls, entries: list[Entry], following: str | None) -> Self:
        """Return a page. `following` is the id of the point after it, or None."""
        if following is None:
            return cls(entries, None)
        cursor = base64.urlsafe_b64encode(uuid.UUID(following).bytes)
        return cls(entries, cursor.decode().rstrip("="))


def id_of(cursor: str) -> str:
    """Return the id of the point that a cursor of `EntryPage` refers to.

    Raises:
        ValueError: It is not such a cursor.

    """
    try:
        return str(uuid.UUID(bytes=base64.b64decode(f"{cursor}==", b"-_", validate=True)))
    except ValueError as error:
        raise ValueError(
            f"cursor {cursor!r:.40} is not one of a page; pass next_cursor of the previous page"
        ) from error


class Conditions(TypedDict, total=False):
    """Values that entries must have to be counted, listed or removed. None allows any value.

    The engine has an index of all fields but `id`. With `id` alone it reads all entries, which
    takes about a second for 100,000 of them.
    """

    id: str | None
    image_id: str | None
    language: str | None  # exactly this language; "" for images
    source: str | None


@dataclass(frozen=True)
class Contents:
    """What a collection holds."""

    entries: int
    languages: Mapping[str, int]  # entries by language; empty for images
    sources: Mapping[str, int]  # entries by source
    space: VectorSpace
    quantization: Quantization | None
    schema: int


def point_id(entry: Entry) -> str:
    """Return the id of an entry's point, a UUID."""
    return str(uuid.UUID(bytes=entry.key))


def entry_of(payload: Payload) -> Entry:
    """Return the entry with this payload."""
    return Entry(
        id=payload["id"],
        image_id=payload["image_id"],
        language=payload["language"],
        caption=payload["caption"],
        source=payload["source"],
    )


def payload_of(entry: Entry, hash_: str | None) -> Payload:
    """Return the payload of an entry's point. `hash_` is that of its content and its encoder."""
    return vars(entry) | {"rule": RULE} | ({HASH: hash_} if hash_ else {})


def of_rule(point: Point) -> Point:
    """Return a point as it is written today: with id and payload of `RULE`."""
    if "rule" in point.payload:
        return point
    return Point(point_id(entry_of(point.payload)), point.vector, point.payload | {"rule": RULE})
