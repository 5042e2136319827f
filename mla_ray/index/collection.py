"""Collections of captions and images in Qdrant, one interface over three backends.

- `http(s)://host:port`: a Qdrant server, 1.16 or newer, for any number of processes. The key comes
  from `QDRANT_API_KEY`. Where the URL names no port, qdrant-client means 6333, for https too.
  `grpc(s)://host:port` is the same server through gRPC, by default at 6334.
- `edge:folder`: Qdrant's engine in-process, one owner at a time; data in `folder/<collection>`.
- `:memory:`: qdrant-client's exact search in Python, gone when closed; for tests.

What is searched is a name for the current version: an alias on a server, the file `current` in a
folder. A rebuild fills the next version and moves that name; no search sees half a collection.

A point's id is made of what its entry is: source, id and language (rule 2, in the payload). In
0.1.0 it was the id and language alone (rule 1), so two tables that number their images alike took
each other's places. Its collections are read as they are and change as they are written.

Shapes: N entries, E joint embedding size.
"""

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient

from mla_ray.index.backend import (
    MIXED_SCHEMA,
    CollectionBackend,
    CollectionConfig,
    Payload,
    PayloadFilter,
    Point,
    Quantization,
    VectorSpace,
)
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.limits import MAX_K, MAX_OFFSET
from mla_ray.index.server import ServerBackend, connect
from mla_ray.model.directions import faults, norms

IMAGES, CAPTIONS = "images", "captions"
"""Names of collections."""
RULE, FORMER_RULE = 2, 1
"""Of point ids: source, id, language; before that native, id, language."""
MAX_TIES = 10_000
"""Entries of one score looked at beyond a page to order them by id."""
BATCH = 256
"""Points a request; at E = 1024 about 5 MB of JSON, a server takes 32."""
DECIMALS = 6
"""Of a score; what is finer is float32 noise and would break ties at random."""
NAMESPACE = uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11")
"""Of our point ids; never change it."""


@dataclass(frozen=True)
class Entry:
    """One caption or one image."""

    id: str  # of the caption or the image
    image_id: str
    language: str  # BCP-47; "" for an image
    caption: str  # "" for an image
    source: str  # data set or collection it came from

    @property
    def key(self) -> bytes:
        """16 bytes that belong to this source, id and language alone; as a UUID the point's id."""
        # as JSON, so that no two of them run together into those of another entry
        name = json.dumps([self.source, self.id, self.language])
        return uuid.uuid5(NAMESPACE, name).bytes


@dataclass(frozen=True)
class ScoredEntry:
    entry: Entry
    score: float  # cosine, rounded to DECIMALS


class CaptionIndex:
    """Captions or images of one native, searched by cosine. Open with `CaptionIndex.open`."""

    def __init__(self, backend: CollectionBackend, space: VectorSpace) -> None:
        self.space = space
        self._backend = backend
        self._mixed: bool | None = None  # whether there are points of FORMER_RULE, once it is known

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
        """Open `collection` at `url`, made first if missing and `create`.

        With `quantization` "int8" graph and scan go through vectors of a quarter of the size, and
        float32 ranks what they find. A collection stays as it was made, whatever its rebuilds;
        None takes it as it is.

        Raises ValueError if it holds another native's vectors, is not quantized as asked or a name
        is malformed, LookupError if it is missing, RuntimeError if its folder has an owner or the
        server refuses, ConnectionError if no server answers, OSError (ENOSPC) if there is too
        little space. The last three go for every method, ENOSPC for those that write.
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

        So does everything that writes. Searching such a folder works, in a private copy.
        """
        self._backend.check_writable()

    def upsert(self, entries: Sequence[Entry], vectors: npt.NDArray[np.float32]) -> int:
        """Write entries and their vectors [N, E], of any length but zero; returns N.

        An entry of the same source, id and language is replaced, so writing twice changes nothing.
        So is one that 0.1.0 wrote. What a running `rebuild` has not been given is gone after it.
        """
        if len(entries) != len(vectors):
            raise ValueError(
                f"{len(entries)} entries but {len(vectors)} vectors; pass one vector an entry"
            )
        lengths = self._norms(vectors)  # all rows first: either all are written, or a bad one none
        for start in range(0, len(entries), BATCH):
            rows = slice(start, start + BATCH)
            units = (vectors[rows] / lengths[rows, None]).astype(np.float32)
            self._backend.upsert(
                [
                    Point(_point_id(entry), unit.tolist(), asdict(entry) | {"rule": RULE})
                    for entry, unit in zip(entries[rows], units, strict=True)
                ]
            )
            if self._is_mixed():  # after the write, so that no search misses the entry
                self._remove(entries[rows], self._former_point_id)
        return len(entries)

    def delete(self, entries: Sequence[Entry]) -> None:
        """Remove entries, by source, id and language. One that is not there changes nothing."""
        self._remove(entries, _point_id)
        if self._is_mixed():
            self._remove(entries, self._former_point_id)

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
        """The `k` entries nearest to `vector` [E] after the first `offset`, best first.

        `language` and `source` must match exactly; language "" finds images only. None that is
        found has a score below `min_score`. Equal scores are ordered by id, language, source.
        Raises ValueError for a bad vector, k, offset or min_score.
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
        # Engines cut equal scores where they like. One entry more than asked for shows whether the
        # page ends inside a tie; then look further, until all that tie are there to be ordered.
        end = offset + k
        limit = end + 1
        while True:
            hits = [
                ScoredEntry(_entry(payload), round(score, DECIMALS))
                for payload, score in self._backend.search(unit, limit, where)
            ]
            tie_is_cut = len(hits) == limit and hits[-1].score == hits[end - 1].score
            if not tie_is_cut or limit >= end + MAX_TIES:
                break
            limit = min(2 * limit, end + MAX_TIES)
        hits.sort(key=lambda hit: (-hit.score, hit.entry.id, hit.entry.language, hit.entry.source))
        # An engine's own threshold would compare what has not been rounded: a hit whose score is
        # shown as the least that was asked for would come or not by chance.
        return [hit for hit in hits[offset:end] if min_score is None or hit.score >= min_score]

    def entries(self, *, language: str | None = None, source: str | None = None) -> Iterator[Entry]:
        """Everything there is, or all of a language or source, in no order that means anything."""
        for payload in self._backend.scroll(_where(language=language, source=source)):
            yield _entry(payload)

    def sources(self, image_id: str) -> dict[str, int]:
        """The sources that have entries of that image, and the rule (`RULE`) each is stored by."""
        rules: dict[str, int] = {}
        for payload in self._backend.scroll(_where(image_id=image_id)):
            rule = payload.get("rule", FORMER_RULE)
            rules[payload["source"]] = max(rule, rules.get(payload["source"], rule))
        return rules

    def count(self, *, language: str | None = None) -> int:
        return self._backend.count(_where(language=language))

    def languages(self) -> dict[str, int]:
        """Captions of each language, by language. Images have none and are left out."""
        counts = self._backend.facet("language")
        return {language: counts[language] for language in sorted(counts) if language}

    def ping(self) -> None:
        """Return if the collection can be reached, at little cost; else raise as `open` does."""
        self._backend.ping()

    @contextmanager
    def rebuild(self) -> Iterator["CaptionIndex"]:
        """Fill an empty next version while this one is searched; on leaving it takes its place.

            with index.rebuild() as fresh:
                fresh.upsert(entries, vectors)

        An exception drops the new version and keeps the old. Of two rebuilds at a time the one
        that ends first wins, the other raises RuntimeError. `fresh` ends with the block.
        """
        with self._backend.rebuild() as fresh:
            yield CaptionIndex(fresh, self.space)
        self._mixed = None

    def optimize(self) -> None:
        """Build the search graph (HNSW) now, after a bulk upsert. A server does so by itself.

        The embedded engine gives back the space of what was replaced or removed, too.

        The embedded engine holds Python's GIL meanwhile, about 7 s for 24,000 vectors of 128 on two
        busy cores: call it from a job, not from a process that serves. Without a graph it scans.
        """
        self._backend.optimize()

    def flush(self) -> None:
        """Return when all writes are on disk. A killed process loses none even without."""
        self._backend.flush()

    def close(self) -> None:
        """Give up the connection or the folder. Twice is once."""
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
        """Whether points of the rule before are there; asked once, of older collections only."""
        if self._mixed is None:
            may_be = self._backend.config.schema == MIXED_SCHEMA
            self._mixed = may_be and self._backend.count({"rule": None}) > 0
        return self._mixed

    def _remove(self, entries: Sequence[Entry], point_id: Callable[[Entry], str]) -> None:
        ids = defaultdict(list)
        for entry in entries:
            ids[entry.source].append(point_id(entry))
        for source, of_source in ids.items():
            for start in range(0, len(of_source), BATCH):
                # By the rule before an id is of any source: only that of this one is to go.
                self._backend.delete(of_source[start : start + BATCH], {"source": source})

    def _former_point_id(self, entry: Entry) -> str:
        # by the fingerprint that the collection was made with
        fingerprint = self._backend.config.space.fingerprint
        return str(uuid.uuid5(NAMESPACE, json.dumps([fingerprint, entry.id, entry.language])))

    def _norms(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """[N], of vectors [N, E] that are fit to be stored. The embedded engine checks only E."""
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
                "direction; drop these rows, or look at what encoded them"
            )
        return lengths


@contextmanager
def open_collections(
    url: str, space: VectorSpace, quantization: Quantization | None = None
) -> Iterator[dict[str, CaptionIndex]]:
    """The collections `images` and `captions`, to be written to; made if missing.

    Open them before work begins that is lost if they cannot be had: that is said here.
    """
    with ExitStack() as stack:
        collections = {}
        for name in (IMAGES, CAPTIONS):
            index = CaptionIndex.open(url, space, name, quantization=quantization)
            collections[name] = stack.enter_context(index)
            index.check_writable()
        yield collections


def _where(**fields: str | None) -> PayloadFilter:
    """Of the fields that are asked for."""
    return {field: value for field, value in fields.items() if value is not None}


def _point_id(entry: Entry) -> str:
    return str(uuid.UUID(bytes=entry.key))


def _entry(payload: Payload) -> Entry:
    return Entry(
        id=payload["id"],
        image_id=payload["image_id"],
        language=payload["language"],
        caption=payload["caption"],
        source=payload["source"],
    )
