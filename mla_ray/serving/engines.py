"""What the deployments do, without Ray: encode texts, encode images, search and write the index.

One bad text, image or pack costs its own rows only: engines answer with vectors and the errors by
row. No vector is other than a unit vector.
"""

import errno
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from mla_ray.data.images import STRANGER, BadImage, decode_image
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex, Entry, ScoredEntry
from mla_ray.index.ingest import space_of
from mla_ray.model.batches import by_length
from mla_ray.model.directions import units
from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Shares
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.mixed_batch import read_mixed
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import PackStore
from mla_ray.serving.schemas import ProblemKind

# A core does more texts a second in small passes, whose activations stay in its cache: 2,600 in
# passes of 32, 2,150 in passes of 128 (emoji-clip, two cores). A GPU wants large ones.
ROWS_A_PASS = {"cpu": 32, "cuda": 1024}

Vectors = npt.NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Of the native that a server holds."""

    native: str
    fingerprint: str
    dim: int
    fingerprint_v1: str = ""
    """By the rule of before, which packs may have."""


class Text(NamedTuple):
    language: str
    text: str


class Fault(NamedTuple):
    """Why a row has no result."""

    kind: ProblemKind
    detail: str


@dataclass
class Encoded:
    """Unit vectors [N, E] float32; the rows in `errors` hold nothing. Slices keep their errors."""

    vectors: Vectors
    unknown_tokens: Shares  # [N]: of each text's tokens the share that is unknown; 0 of an image
    errors: dict[int, Fault] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, dim: int) -> Self:
        return cls(np.zeros((rows, dim), np.float32), np.zeros(rows))

    def put(self, rows: Sequence[int], features: torch.Tensor, encoders: Sequence[str]) -> None:
        """Features [n, E] of some rows, of any length; one that has no direction is an error.

        `encoders` names for each row what gave its feature.
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
        return type(self)(self.vectors[rows], self.unknown_tokens[rows], errors)


class IndexNotWritable(Exception):
    """The index can be searched and not written to now: its disk is full, or read-only."""


class Query(NamedTuple):
    collection: str
    vector: Vectors  # [E]
    k: int
    offset: int
    language: str | None
    source: str | None
    min_score: float | None = None


class QueryResult(NamedTuple):
    """The hits of a query, or why there are none."""

    hits: list[ScoredEntry]
    fault: Fault | None = None


class PreparedPacks(NamedTuple):
    """The packs of languages, None for English, which needs none; and why others have none."""

    packs: dict[str, LanguagePack | None]
    faults: dict[str, Fault]


class TextEngine:
    """One native, many packs."""

    def __init__(self, native: str, store: str, max_packs: int, threads: int) -> None:
        self.native = _load(native, threads)
        packs = PackStore(store, self.native.fingerprint, self.native.fingerprint_v1)
        self.library = PackLibrary(packs, self.native, max_packs)
        self.library.refresh()

    @property
    def identity(self) -> Identity:
        native = self.native
        return Identity(native.name, native.fingerprint, native.dim, native.fingerprint_v1)

    def prepare(self, languages: set[str]) -> PreparedPacks:
        """The packs of `languages`, loaded if need be."""
        prepared = PreparedPacks({}, {})
        for language in languages:
            try:
                prepared.packs[language] = self.library.get(language)
            except KeyError:
                detail = f"no pack for {language!r} in the store"
                prepared.faults[language] = Fault(ProblemKind.PACK_UNAVAILABLE, detail)
            except Exception as error:  # whatever it is, it is this language's alone
                detail = f"the pack for {language!r} cannot be loaded: {error}"
                prepared.faults[language] = Fault(ProblemKind.PACK_UNAVAILABLE, detail)
        return prepared

    def count_tokens(self, texts: Sequence[Text]) -> list[int | None]:
        """Of each text its tokens in its language; None where its pack cannot be had now."""
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
        """Texts of any languages, mixed as they are; `prepared` has all of them."""
        result = Encoded.empty(len(texts), self.native.dim)
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
        """One pass; if it fails, its halves, until the row is found that it fails for."""
        rows = [row for row, *_ in batch]
        try:
            mixed = read_mixed(self.native, [(text, pack) for _, _, text, pack in batch])
        except Exception as error:  # a tokenizer's own, or of what a pass has too much of
            if len(batch) > 1:
                half = len(batch) // 2
                self._encode(batch[:half], result)
                self._encode(batch[half:], result)
            else:
                detail = f"{batch[0][1]!r} cannot encode this text: {type(error).__name__}"
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
        """Raise unless a text comes out as a unit vector."""
        encoded = self.encode([Text(ENGLISH, "dog")], PreparedPacks({ENGLISH: None}, {}))
        if not np.isclose(np.linalg.norm(encoded.vectors[0]), 1, atol=1e-3):
            raise RuntimeError(f"native {self.native.name!r} does not encode")


class ImageEngine:
    def __init__(self, native: str, threads: int) -> None:
        self.native = _load(native, threads)

    @torch.inference_mode()
    def encode(self, images: Sequence[bytes]) -> Encoded:
        """Encoded images (PNG, JPEG, …) to vectors."""
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
        """Raise unless the tower is there and its weights are finite."""
        weight = next(self.native.model.visual.parameters())
        if not bool(torch.isfinite(weight).all()):
            raise RuntimeError(f"native {self.native.name!r} has lost its weights")


class IndexEngine:
    """The collections `images` and `captions` of one native."""

    def __init__(self, url: str, native: Native) -> None:
        self.collections: dict[str, CaptionIndex] = {}
        space = space_of(native)
        try:
            for name in (IMAGES, CAPTIONS):
                self.collections[name] = CaptionIndex.open(url, space, name)
        except BaseException:
            self.close()
            raise

    def search(self, queries: Sequence[Query]) -> list[QueryResult]:
        return [self._search(query) for query in queries]

    def _search(self, query: Query) -> QueryResult:
        try:
            hits = self.collections[query.collection].search(
                query.vector,
                query.k,
                offset=query.offset,
                language=query.language,
                source=query.source,
                min_score=query.min_score,
            )
        except ValueError as error:  # of this query alone
            return QueryResult([], Fault(ProblemKind.INVALID_REQUEST, str(error)))
        return QueryResult(hits)

    def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        """Write and return how many; all are on disk, or in the engine's log, on return."""
        try:
            return self.collections[collection].upsert(entries, vectors)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise
            log.error("%s", error)  # names the folder, which is no client's to know
            raise IndexNotWritable(error.strerror) from error

    def languages(self) -> dict[str, int]:
        """Captions of each language."""
        return self.collections[CAPTIONS].languages()

    def sources(self, image_id: str) -> dict[str, int]:
        """The sources of the images of that id, as `CaptionIndex.sources` tells them."""
        return self.collections[IMAGES].sources(image_id)

    def check(self) -> None:
        for index in self.collections.values():
            index.ping()

    def close(self) -> None:
        for index in self.collections.values():
            index.close()


def torch_thread() -> ThreadPoolExecutor:
    """The one thread of a process in which everything of torch is done, loading included.

    OpenMP keeps helper threads for every thread that ever called torch. Once they outnumber the
    cores, they no longer wait for work by spinning, and two threads are hardly faster than one.
    """
    return ThreadPoolExecutor(1, "torch")


def _load(native: str, threads: int) -> Native:
    torch.set_num_threads(threads or os.cpu_count() or 1)  # Ray's workers start with one
    return Native.load(native, "cuda" if torch.cuda.is_available() else "cpu")
