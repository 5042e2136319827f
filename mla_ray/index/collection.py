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

import fcntl
import json
import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, TextIO
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from mla_ray.model.directions import faults, norms
from mla_ray.model.recognition import recognised

IMAGES, CAPTIONS = "images", "captions"
"""Names of collections."""
SCHEMA = 3  # of the stored points and of the record beside them; all points are of RULE
MIXED_SCHEMA = 2  # some points may be of the rule before; other schemas are refused
RULE, FORMER_RULE = 2, 1  # of point ids: source, id, language; native, id, language
VECTOR = "joint"  # name of a point's vector; others may be added beside it one day
MAX_K = 1000
MAX_OFFSET = 10_000
MAX_TIES = 10_000  # entries of one score looked at beyond a page to order them by id
BATCH = 256  # points a request; at E = 1024 about 5 MB of JSON, a server takes 32
SCROLL = 1000  # payloads a request
HNSW_EF = (
    256  # candidates kept while searching the graph: found 99.7 % of the true top 10, 128 99 %
)
DECIMALS = 6  # of a score; what is finer is float32 noise and would break ties at random
QUANTILE = 0.99  # of the components within int8's range; outliers are cut to its ends
OVERSAMPLING = 2.0  # times as many candidates of int8 as asked for, then ranked by float32
INDEXED = ("language", "source", "image_id")
MAX_LANGUAGES = 10_000
NAMESPACE = uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11")  # of our point ids; never change it


STAYS = "It stays so; index again under another collection name for the fingerprint of today."
"""What to do about a collection with a fingerprint of the rule of before."""

Quantization = Literal["int8"]
Where = dict[str, str | None]
"""Payload fields and the value each must have; None: the field must be missing."""


@dataclass(frozen=True)
class Space:
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
class Hit:
    entry: Entry
    score: float  # cosine, rounded to DECIMALS


class _Point(NamedTuple):
    id: str  # UUID
    vector: list[float]  # [E], unit length
    payload: dict[str, Any]


class _Backend(Protocol):
    """One collection somewhere."""

    kind: "_Kind"

    def upsert(self, points: list[_Point]) -> None: ...

    def delete(self, ids: list[str], where: Where) -> None:
        """Remove those of the points `ids` that `where` fits."""

    def search(
        self, vector: list[float], limit: int, where: Where
    ) -> list[tuple[dict[str, Any], float]]:
        """Payloads and cosines, best first, ties in any order."""

    def scroll(self, where: Where) -> Iterator[dict[str, Any]]:
        """Payloads of all that fits, in the order of point ids."""

    def count(self, where: Where) -> int: ...

    def facet(self, field: str) -> dict[str, int]: ...

    def rebuild(self) -> AbstractContextManager["_Backend"]:
        """An empty next version; takes this one's place on leaving, unless by an exception."""

    def ping(self) -> None: ...

    def optimize(self) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class CaptionIndex:
    """Captions or images of one native, searched by cosine. Open with `CaptionIndex.open`."""

    def __init__(self, backend: _Backend, space: Space) -> None:
        self.space = space
        self._backend = backend
        self._mixed: bool | None = None  # whether there are points of FORMER_RULE, once it is known

    @classmethod
    def open(
        cls,
        url: str,
        space: Space,
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
        server refuses, ConnectionError if no server answers. The last two go for every method.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", collection):
            raise ValueError(
                f"collection name {collection!r}: use 1 to 63 of a-z, 0-9, '_' and '-', "
                "the first a letter or digit"
            )
        kind = _Kind(space, quantization)
        if url == ":memory:":
            local = QdrantClient(":memory:")
            backend: _Backend = _ClientBackend.open(local, url, kind, collection, create)
            return cls(backend, backend.kind.space)
        scheme, _, rest = url.partition(":")
        if scheme == "edge" and rest:
            folder = Path(rest).expanduser().resolve() / collection
            backend = _EdgeBackend.open(folder, kind, create)
            return cls(backend, backend.kind.space)
        client = _connect(url)
        with ExitStack() as undo:
            undo.callback(client.close)
            backend = _ClientBackend.open(client, url, kind, collection, create)
            undo.pop_all()
        return cls(backend, backend.kind.space)

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
                    _Point(_point_id(entry), unit.tolist(), asdict(entry) | {"rule": RULE})
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
    ) -> list[Hit]:
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
                Hit(_entry(payload), round(score, DECIMALS))
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
        found: dict[str, int] = {}
        for payload in self._backend.scroll(_where(image_id=image_id)):
            rule = payload.get("rule", FORMER_RULE)
            found[payload["source"]] = max(rule, found.get(payload["source"], rule))
        return found

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
            may_be = self._backend.kind.schema == MIXED_SCHEMA
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
        fingerprint = self._backend.kind.space.fingerprint
        return str(uuid.uuid5(NAMESPACE, json.dumps([fingerprint, entry.id, entry.language])))

    def _norms(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """[N], of vectors [N, E] that are fit to be stored. The embedded engine checks only E."""
        if vectors.ndim != 2 or vectors.shape[1] != self.space.dim:
            raise ValueError(
                f"vectors have shape {list(vectors.shape)}, native {self.space.native!r} makes "
                f"[N, {self.space.dim}]; encode with that native"
            )
        found = norms(vectors)
        if bad := faults(found):
            row, fault = next(iter(bad.items()))
            raise ValueError(
                f"vector {row} is {fault} ({len(bad)} of {len(vectors)} are bad) and has no "
                "direction; drop these rows, or look at what encoded them"
            )
        return found


@dataclass(frozen=True)
class _Kind:
    """What a collection is made as; the record of it is kept beside the points."""

    space: Space
    quantization: Quantization | None
    schema: int = SCHEMA

    def record(self) -> dict[str, Any]:
        return {"schema": self.schema, **_owner(self.space), "quantization": self.quantization}

    def rebuilt(self) -> "_Kind":
        """Of a version that is made now."""
        return replace(self, schema=SCHEMA)

    def of_record(self, found: Any, where: str) -> "_Kind":
        """The kind that is there; ValueError if its record is of another than what was asked.

        A collection keeps the fingerprint that it was made with, whatever its rebuilds: it is in
        the names of its versions and the ids of its points, which processes that have it open go on
        with.
        """
        space = self.space
        if not isinstance(found, dict) or not {"schema", *_owner(space)} <= found.keys():
            raise ValueError(
                f"{where} does not say whose vectors it holds (found {found!r}); it was made by "
                "other software or on a server older than Qdrant 1.16: choose another collection "
                "name"
            )
        if found["schema"] not in (MIXED_SCHEMA, SCHEMA):
            raise ValueError(
                f"{where} has schema {found['schema']}, this version reads {MIXED_SCHEMA} and "
                f"{SCHEMA}; use the mla-ray that made it, or ingest again in another place or "
                "under another name"
            )
        ours = space.fingerprint, space.fingerprint_v1
        if found["dim"] != space.dim or not recognised(found["fingerprint"], *ours, where, STAYS):
            raise ValueError(
                f"{where} holds vectors of native {found['native']!r} (fingerprint "
                f"{found['fingerprint']}, {found['dim']} dimensions), not of {space.native!r} "
                f"(fingerprint {space.fingerprint}, {space.dim} dimensions); serve that native, or "
                "give this one a collection of its own name"
            )
        there = found.get("quantization")
        if self.quantization not in (None, there):
            raise ValueError(
                f"{where} was made with quantization {there!r}, not {self.quantization!r}, and "
                "stays so; open it without, or ingest again under another collection name"
            )
        return _Kind(replace(space, fingerprint=found["fingerprint"]), there, found["schema"])


def _owner(space: Space) -> dict[str, Any]:
    """What a record says of whose vectors a collection holds."""
    return {"native": space.native, "fingerprint": space.fingerprint, "dim": space.dim}


class _ClientBackend:
    """A Qdrant server, or qdrant-client's local mode, which behaves like one."""

    def __init__(
        self, client: QdrantClient, url: str, kind: "_Kind", collection: str, name: str
    ) -> None:
        self.client = client
        self.url = url
        self.local = url == ":memory:"
        self.kind = kind
        self.collection = collection  # the alias
        self.name = name  # what is read and written: the alias, or a version being filled

    @classmethod
    def open(
        cls, client: QdrantClient, url: str, kind: "_Kind", collection: str, create: bool
    ) -> "_ClientBackend":
        self = cls(client, url, kind, collection, collection)
        with self._reaching():
            if collection not in {alias.alias_name for alias in client.get_aliases().aliases}:
                if not create:
                    raise _missing(f"collection {collection!r}")
                first = _version(kind.space, collection, 1)
                self._create(first, kind, exist_ok=True)  # someone else may be opening it, too
                client.update_collection_aliases([_point_alias(collection, first)])
            found = client.get_collection(collection).config.metadata
        self.kind = kind.of_record(found, f"collection {collection!r}")
        return self

    def upsert(self, points: list[_Point]) -> None:
        rows = [
            models.PointStruct(id=p.id, vector={VECTOR: p.vector}, payload=p.payload)
            for p in points
        ]
        with self._reaching():
            self.client.upsert(self.name, rows, wait=True)

    def delete(self, ids: list[str], where: Where) -> None:
        chosen = models.FilterSelector(filter=self._filter(where, ids))
        with self._reaching():
            self.client.delete(self.name, chosen, wait=True)

    def search(
        self, vector: list[float], limit: int, where: Where
    ) -> list[tuple[dict[str, Any], float]]:
        params = models.SearchParams(hnsw_ef=HNSW_EF)
        if self.kind.quantization:
            params.quantization = models.QuantizationSearchParams(
                rescore=True, oversampling=OVERSAMPLING
            )
        with self._reaching():
            found = self.client.query_points(
                self.name,
                query=vector,
                using=VECTOR,
                limit=limit,
                query_filter=self._filter(where),
                search_params=None if self.local else params,
            )
        return [(point.payload or {}, point.score) for point in found.points]

    def scroll(self, where: Where) -> Iterator[dict[str, Any]]:
        start: Any = None
        while True:
            with self._reaching():
                found, start = self.client.scroll(
                    self.name, scroll_filter=self._filter(where), limit=SCROLL, offset=start
                )
            yield from (point.payload or {} for point in found)
            if start is None:
                return

    def count(self, where: Where) -> int:
        with self._reaching():
            return self.client.count(self.name, count_filter=self._filter(where), exact=True).count

    def facet(self, field: str) -> dict[str, int]:
        with self._reaching():
            found = self.client.facet(self.name, field, limit=MAX_LANGUAGES, exact=True)
        return {str(hit.value): hit.count for hit in found.hits}

    @contextmanager
    def rebuild(self) -> Iterator[_Backend]:
        with self._reaching():
            space, kind = self.kind.space, self.kind.rebuilt()
            fresh = _next_version(space, self.collection, self._names())
            self._create(fresh, kind)
            try:
                yield _ClientBackend(self.client, self.url, kind, self.collection, fresh)
                _check_kept(fresh, self._names())
            except BaseException:
                self.client.delete_collection(fresh)
                raise
            forget = models.DeleteAlias(alias_name=self.collection)
            self.client.update_collection_aliases(  # one request, so one step for who searches
                [
                    models.DeleteAliasOperation(delete_alias=forget),
                    _point_alias(self.collection, fresh),
                ]
            )
            self.kind = kind
            for name in _versions(space, self.collection, self._names()):
                if name != fresh:  # the one replaced, and those of rebuilds that were killed
                    self.client.delete_collection(name)

    def ping(self) -> None:
        with self._reaching():
            self.client.get_collection(self.name)

    def optimize(self) -> None:
        pass  # a server does it in the background; local mode has no graph

    def flush(self) -> None:
        pass  # every write was waited for

    def close(self) -> None:
        self.client.close()

    def _create(self, name: str, kind: "_Kind", *, exist_ok: bool = False) -> None:
        int8 = models.ScalarQuantizationConfig(
            type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True
        )
        params = models.VectorParams(
            size=kind.space.dim,
            distance=models.Distance.COSINE,
            quantization_config=models.ScalarQuantization(scalar=int8)
            if kind.quantization
            else None,
        )
        record = kind.record()
        try:
            self.client.create_collection(name, vectors_config={VECTOR: params}, metadata=record)
        except _ERRORS:
            if not (exist_ok and self.client.collection_exists(name)):
                raise
        if not self.local:  # local mode warns that payload indexes have no effect there
            for field in INDEXED:
                self.client.create_payload_index(name, field, models.PayloadSchemaType.KEYWORD)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Tell no answer, or one that asks to come again (ConnectionError), from a refusal."""
        try:
            yield
        except _ERRORS as error:
            if _is_passing(error):
                raise ConnectionError(
                    f"no Qdrant server answers at {self.url}: {_said(error)}; start one, or use "
                    "edge:folder"
                ) from error
            raise RuntimeError(
                f"the Qdrant server at {self.url} refuses: {_said(error)}"
            ) from error

    def _names(self) -> list[str]:
        return [collection.name for collection in self.client.get_collections().collections]

    @staticmethod
    def _filter(where: Where, ids: list[str] | None = None) -> models.Filter:
        must: list[models.Condition] = [
            models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
            if value is None
            else models.FieldCondition(key=field, match=models.MatchValue(value=value))
            for field, value in where.items()
        ]
        if ids is not None:
            must.append(models.HasIdCondition(has_id=list(ids)))
        return models.Filter(must=must)


class _EdgeBackend:
    """The embedded engine. The folder holds a shard a version, `space.json`, `current`, `lock`."""

    def __init__(
        self, folder: Path, kind: "_Kind", shard: edge.EdgeShard, lock: TextIO | None
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.shard = shard
        self.lock = lock  # None for a version being filled: it lives under its owner's lock

    @classmethod
    def open(cls, folder: Path, kind: "_Kind", create: bool) -> "_EdgeBackend":
        current, record = folder / "current", folder / "space.json"
        if not create and not current.exists():
            raise _missing(str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context((folder / "lock").open("a"))
            try:
                # The engine locks a shard, not the choice between versions, and says "WouldBlock".
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(
                    f"{folder} is open already, here or in another process, and can have one "
                    "owner; close it there, or use a Qdrant server (http://…) for several"
                ) from error
            if record.exists():
                kind = kind.of_record(json.loads(record.read_text()), str(folder))
            else:
                _write(record, json.dumps(kind.record(), indent=2))
            if current.exists():
                name = current.read_text()
                if name not in _versions(kind.space, folder.name, _folders(folder)):
                    raise ValueError(
                        f"{current} names {name!r}, which is no version in that folder; restore "
                        f"the folder from a backup, or delete it and ingest again"
                    )
                shard = edge.EdgeShard.load(str(folder / name))
            else:
                name = _version(kind.space, folder.name, 1)
                shutil.rmtree(folder / name, ignore_errors=True)  # a creation that was killed
                shard = _create_shard(folder / name, kind)
                _write(current, name)
            undo.pop_all()
        return cls(folder, kind, shard, lock)

    def upsert(self, points: list[_Point]) -> None:
        rows = [edge.Point(p.id, {VECTOR: p.vector}, p.payload) for p in points]
        self.shard.update(edge.UpdateOperation.upsert_points(rows))

    def delete(self, ids: list[str], where: Where) -> None:
        chosen = self._filter(where, ids)
        self.shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))

    def search(
        self, vector: list[float], limit: int, where: Where
    ) -> list[tuple[dict[str, Any], float]]:
        rescored = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        found = self.shard.query(
            edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(vector, VECTOR),
                filter=self._filter(where),
                with_payload=True,
                params=edge.SearchParams(
                    hnsw_ef=HNSW_EF, quantization=rescored if self.kind.quantization else None
                ),
            )
        )
        return [(point.payload or {}, point.score) for point in found]

    def scroll(self, where: Where) -> Iterator[dict[str, Any]]:
        start: Any = None
        while True:
            found, start = self.shard.scroll(
                edge.ScrollRequest(
                    offset=start, limit=SCROLL, filter=self._filter(where), with_payload=True
                )
            )
            yield from (point.payload or {} for point in found)
            if start is None:
                return

    def count(self, where: Where) -> int:
        return int(self.shard.count(edge.CountRequest(exact=True, filter=self._filter(where))))

    def facet(self, field: str) -> dict[str, int]:
        found = self.shard.facet(edge.FacetRequest(field, limit=MAX_LANGUAGES, exact=True))
        return {str(hit.value): hit.count for hit in found}

    @contextmanager
    def rebuild(self) -> Iterator[_Backend]:
        name = _next_version(self.kind.space, self.folder.name, _folders(self.folder))
        kind = self.kind.rebuilt()
        shard = _create_shard(self.folder / name, kind)
        try:
            yield _EdgeBackend(self.folder, kind, shard, lock=None)
            _check_kept(name, _folders(self.folder))
            shard.flush()
        except BaseException:
            shard.close()
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise
        shard.close()  # so that `fresh`, if someone kept it, cannot write past the swap
        _write(self.folder / "current", name)
        _write(self.folder / "space.json", json.dumps(kind.record(), indent=2))
        self.kind = kind
        # Not closed: searches still running in the old shard end well, then it closes itself.
        self.shard = edge.EdgeShard.load(str(self.folder / name))
        for other in _versions(self.kind.space, self.folder.name, _folders(self.folder)):
            if other != name:  # the one replaced, and those of rebuilds that were killed
                shutil.rmtree(self.folder / other, ignore_errors=True)  # the next one retries

    def ping(self) -> None:
        try:
            self.shard.info()
        except Exception as error:  # the engine raises no other
            raise RuntimeError(f"{self.folder} does not answer: {error}") from error

    def optimize(self) -> None:
        self.shard.optimize()

    def flush(self) -> None:
        self.shard.flush()

    def close(self) -> None:
        self.shard.close()
        if self.lock:
            self.lock.close()

    @staticmethod
    def _filter(where: Where, ids: list[str] | None = None) -> edge.Filter:
        must: list[Any] = [
            edge.IsEmptyCondition(field)
            if value is None
            else edge.FieldCondition(field, match=edge.MatchValue(value))
            for field, value in where.items()
        ]
        if ids is not None:
            must.append(edge.HasIdCondition(set(ids)))
        return edge.Filter(must=must)


def _create_shard(path: Path, kind: "_Kind") -> edge.EdgeShard:
    int8 = edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=QUANTILE, always_ram=True
    )
    params = edge.EdgeVectorParams(
        size=kind.space.dim,
        distance=edge.Distance.Cosine,
        quantization_config=int8 if kind.quantization else None,
    )
    shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors={VECTOR: params}))
    for field in INDEXED:
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    return shard


_ERRORS = (
    ResponseHandlingException,  # no connection, or no answer in time
    ResourceExhaustedResponse,  # 429
    UnexpectedResponse,
    grpc.RpcError,
)


def _is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (408, 429, 502, 503, 504)
    if isinstance(error, grpc.RpcError):
        codes = grpc.StatusCode
        return error.code() in (
            codes.UNAVAILABLE,
            codes.DEADLINE_EXCEEDED,
            codes.RESOURCE_EXHAUSTED,
        )
    return True


def _said(error: Exception) -> str:
    return (
        f"{error.code().name}: {error.details()}"
        if isinstance(error, grpc.RpcError)
        else str(error)
    )


def _connect(url: str) -> QdrantClient:
    """A client of the server at `url`. It connects when it is first used."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https", "grpc", "grpcs") or not address.hostname:
        raise ValueError(
            f"index {url!r} is not understood; give http(s)://host:port, grpc(s)://host:port, "
            "edge:folder or :memory:"
        )
    if "@" in address.netloc:
        raise ValueError(
            "the index URL holds a user or password; set QDRANT_API_KEY instead, URLs end up in "
            "logs"
        )
    key = os.environ.get("QDRANT_API_KEY")
    if address.scheme.startswith("http"):
        return QdrantClient(url, api_key=key)
    return QdrantClient(
        f"http{address.scheme.removeprefix('grpc')}://{address.hostname}",
        grpc_port=address.port or 6334,
        prefer_grpc=True,
        api_key=key,
        check_compatibility=False,  # that would ask the HTTP port, which may be closed
    )


def _where(**fields: str | None) -> Where:
    """Of the fields that are asked for."""
    return {field: value for field, value in fields.items() if value is not None}


def _point_id(entry: Entry) -> str:
    return str(uuid.UUID(bytes=entry.key))


def _entry(payload: dict[str, Any]) -> Entry:
    return Entry(
        id=payload["id"],
        image_id=payload["image_id"],
        language=payload["language"],
        caption=payload["caption"],
        source=payload["source"],
    )


def _version(space: Space, collection: str, number: int) -> str:
    return f"{collection}-{space.fingerprint[:12]}-v{number}"


def _versions(space: Space, collection: str, names: Iterable[str]) -> dict[str, int]:
    """Those of `names` that are versions of this collection, and their numbers."""
    pattern = re.compile(re.escape(f"{collection}-{space.fingerprint[:12]}-v") + r"([1-9][0-9]*)")
    matches = [pattern.fullmatch(name) for name in names]
    return {match[0]: int(match[1]) for match in matches if match}


def _next_version(space: Space, collection: str, names: Iterable[str]) -> str:
    taken = _versions(space, collection, names).values()
    return _version(space, collection, max(taken, default=0) + 1)


def _check_kept(name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise RuntimeError(
            f"{name} is gone: another rebuild of the collection ended first and took its place; "
            "let one process rebuild at a time, and run this one again if its data is newer"
        )


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _point_alias(alias: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
    )


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads it, even after a crash, sees old or new."""
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _missing(where: str) -> LookupError:
    return LookupError(f"{where} does not exist; ingest into it first, or open with create=True")
