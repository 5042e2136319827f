"""Engines behind the deployments, without Ray: encode texts, encode images, search and write.

An engine returns unit vectors and the errors by row. A bad text, image or pack affects only its own
rows.

Shapes: N rows, E joint embedding size.
"""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from mla_ray.data.images import STRANGER, BadImage, decode_image
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Conditions, Contents, Entry, EntryPage, ScoredEntry
from mla_ray.index.ingest import space_of
from mla_ray.index.lexical import QueryText
from mla_ray.index.search import Search
from mla_ray.model.batches import by_length
from mla_ray.model.directions import units
from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Shares
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.mixed_batch import read_mixed
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import PackStore
from mla_ray.serving.breaker import Breaker
from mla_ray.serving.schemas import Collection, ProblemKind

# Rows of one forward pass. The activations of a small batch stay in the cache of a CPU: 2,600 texts
# a second with 32 rows, 2,150 with 128 (emoji-clip, two cores). A GPU needs large batches.
ROWS_A_PASS = {"cpu": 32, "cuda": 1024}

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
    unknown_tokens: Shares
    """Share of each text's tokens that is unknown, `[N]`, 0 to 1. 0 for an image."""
    errors: dict[int, Fault] = field(default_factory=dict)
    """Reason by row, for rows without a vector."""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of the files of the packs that encoded texts, by language and name."""

    @classmethod
    def empty(cls, rows: int, dim: int) -> Self:
        """Return zero vectors of the shape `[rows, dim]`, to be filled with `put`."""
        return cls(np.zeros((rows, dim), np.float32), np.zeros(rows))

    def put(self, rows: Sequence[int], features: torch.Tensor, encoders: Sequence[str]) -> None:
        """Normalize features and store them. A zero or non-finite feature becomes an error.

        Args:
            rows: Rows to fill.
            features: Features of these rows `[len(rows), E]`, of any norm.
            encoders: For each row, the name of its encoder for the error message.

        """
        vectors, faults = units(features.float().cpu().numpy())
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


class PreparedPacks(NamedTuple):
    """Packs by language, and the reason by language for those that cannot be loaded."""

    packs: dict[str, LanguagePack | None]
    """None for English, which needs no pack."""
    faults: dict[str, Fault]


class TextEngine:
    """Text encoder: one native and the packs of a store."""

    def __init__(self, native: str, store: str, max_packs: int, threads: int) -> None:
        self.native = _load(native, threads)
        packs = PackStore(store, self.native.fingerprint, self.native.fingerprint_v1)
        self.library = PackLibrary(packs, self.native, max_packs)
        self.library.refresh()

    @property
    def identity(self) -> Identity:
        """Identity of the native."""
        native = self.native
        return Identity(native.name, native.fingerprint, native.dim, native.fingerprint_v1)

    def prepare(self, languages: set[str]) -> PreparedPacks:
        """Return the packs of `languages`. Load those that are not in memory."""
        prepared = PreparedPacks({}, {})
        for language in languages:
            try:
                prepared.packs[language] = self.library.get(language)
            except KeyError:
                detail = f"no pack for {language!r} in the store"
                prepared.faults[language] = Fault(ProblemKind.PACK_UNAVAILABLE, detail)
            except Exception as error:  # any error concerns this language only
                detail = f"the pack for {language!r} cannot be loaded: {error}"
                prepared.faults[language] = Fault(ProblemKind.PACK_UNAVAILABLE, detail)
        return prepared

    def count_tokens(self, texts: Sequence[Text]) -> list[int | None]:
        """Count the tokens of each text in its language; None if its pack is unavailable."""
        packs = self.prepare({language for language, _ in texts}).packs
        counts: list[int | None] = []
        for language, text in texts:
            if language not in packs:
                counts.append(None)
            elif pack := packs[language]:
                counts.append(pack.tokenizer.count(text))
            else:
                counts.append(self.native.count(text))
        return counts

    def encode(self, texts: Sequence[Text], prepared: PreparedPacks) -> Encoded:
        """Encode texts. One forward pass may hold several languages.

        Args:
            texts: Texts of any languages, in any order.
            prepared: Result of `prepare` for all languages of `texts`.

        """
        result = Encoded.empty(len(texts), self.native.dim)
        packs = prepared.packs.items()
        result.files = {language: pack.card.sha256 for language, pack in packs if pack}
        good: list[tuple[int, str, str, LanguagePack | None]] = []
        for row, (language, text) in enumerate(texts):
            if language in prepared.faults:
                result.errors[row] = prepared.faults[language]
            else:
                good.append((row, language, text, prepared.packs[language]))
        lengths = [len(text) for _, _, text, _ in good]
        for positions in by_length(lengths, ROWS_A_PASS[self.native.device.type]):
            self._encode([good[position] for position in positions], result)
        return result

    def _encode(
        self, batch: Sequence[tuple[int, str, str, LanguagePack | None]], result: Encoded
    ) -> None:
        """Encode one batch. If it fails, encode its halves, so that only bad rows get an error."""
        rows = [row for row, *_ in batch]
        try:
            mixed = read_mixed(self.native, [(text, pack) for _, _, text, pack in batch])
        except Exception as error:  # raised by a tokenizer, or by torch for too large a batch
            if len(batch) > 1:
                half = len(batch) // 2
                self._encode(batch[:half], result)
                self._encode(batch[half:], result)
            else:
                detail = f"{batch[0][1]!r}: this text cannot be encoded: {type(error).__name__}"
                result.errors[rows[0]] = Fault(ProblemKind.NOT_ENCODED, detail)
                log.warning(detail)
            return
        result.unknown_tokens[rows] = mixed.unknown_tokens
        encoders = [
            f"the pack for {language!r}" if pack else f"native {self.native.name!r}"
            for _, language, _, pack in batch
        ]
        result.put(rows, mixed.features, encoders)

    def check(self) -> None:
        """Encode a test text.

        Raises:
            RuntimeError: The result is not a unit vector.

        """
        encoded = self.encode([Text(ENGLISH, "dog")], PreparedPacks({ENGLISH: None}, {}))
        if not np.isclose(np.linalg.norm(encoded.vectors[0]), 1, atol=1e-3):
            raise RuntimeError(f"native {self.native.name!r}: a text has no unit vector")


class ImageEngine:
    """Image encoder of one native."""

    def __init__(self, native: str, threads: int) -> None:
        self.native = _load(native, threads)

    @torch.inference_mode()
    def encode(self, images: Sequence[bytes]) -> Encoded:
        """Decode images in a file format (PNG, JPEG, …) and encode them."""
        result = Encoded.empty(len(images), self.native.dim)
        rows, pixels = [], []
        for row, data in enumerate(images):
            try:
                pixels.append(self.native.preprocess(decode_image(data, STRANGER)))
                rows.append(row)
            except BadImage as error:
                result.errors[row] = Fault(ProblemKind.BAD_IMAGE, f"the image {error}")
        if pixels:
            features = self.native.encode_image(torch.stack(pixels))
            result.put(rows, features, [f"native {self.native.name!r}"] * len(rows))
        return result

    def check(self) -> None:
        """Check the first weight tensor of the image tower.

        Raises:
            RuntimeError: A weight is not finite.

        """
        weight = next(self.native.model.visual.parameters())
        if not bool(torch.isfinite(weight).all()):
            raise RuntimeError(f"native {self.native.name!r}: image weights are not finite")


class IndexEngine:
    """Collections `images` and `captions` of one native.

    All methods but `close` raise `IndexUnavailable` if the index is on a server that is away.

    Args:
        url: URL of the index, as for `CaptionIndex.open`.
        native: The native whose vectors the index holds.
        timeout_s: Time limit of one request to a Qdrant server in seconds.

    """

    def __init__(self, url: str, native: Native, timeout_s: int | None = None) -> None:
        self.collections: dict[str, CaptionIndex] = {}
        self._breaker = Breaker(self._ping)
        space = space_of(native)
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


def _load(native: str, threads: int) -> Native:
    torch.set_num_threads(threads or os.cpu_count() or 1)  # Ray starts workers with one thread
    return Native.load(native, "cuda" if torch.cuda.is_available() else "cpu")
