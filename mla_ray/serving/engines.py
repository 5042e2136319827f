"""What the deployments do, without Ray: encode texts, encode images, search and write the index.

One bad text or image costs its own row only: engines answer with vectors and the errors by row.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from mla_ray.data.images import BadImage, open_image
from mla_ray.index.collection import CaptionIndex, Entry, Hit
from mla_ray.index.ingest import CAPTIONS, IMAGES, space_of
from mla_ray.model.native import Native
from mla_ray.packs.card import PackError
from mla_ray.packs.mixed_batch import encode_mixed
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import PackLibrary, PackStore

# A core does more texts a second in small passes, whose activations stay in its cache: 2,600 in
# passes of 32, 2,150 in passes of 128 (emoji-clip, two cores). A GPU wants large ones.
ROWS_A_PASS = {"cpu": 32, "cuda": 1024}

Vectors = npt.NDArray[np.float32]
Text = tuple[str, str]  # language, text


@dataclass(frozen=True)
class Identity:
    """Of the native that a server holds."""

    native: str
    fingerprint: str
    dim: int
    fingerprint_v1: str = ""
    """By the rule of before, which packs may have."""


@dataclass
class Encoded:
    """Unit vectors [N, E] float32; the rows in `errors` hold nothing."""

    vectors: Vectors
    errors: dict[int, str] = field(default_factory=dict)


class Query(NamedTuple):
    collection: str
    vector: Vectors  # [E]
    k: int
    offset: int
    language: str | None
    source: str | None


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

    def prepare(self, languages: set[str]) -> dict[str, LanguagePack | str | None]:
        """The packs of `languages`, loaded if need be; instead of one, why there is none."""
        found: dict[str, LanguagePack | str | None] = {}
        for language in languages:
            try:
                found[language] = self.library.get(language)
            except KeyError:
                found[language] = f"no pack for {language!r} in the store"
            except (PackError, OSError) as error:
                found[language] = f"the pack for {language!r} cannot be loaded: {error}"
        return found

    def encode(self, texts: Sequence[Text], packs: dict[str, LanguagePack | str | None]) -> Encoded:
        """Texts of any languages, mixed as they are. `packs` is what `prepare` gave."""
        result = Encoded(np.zeros((len(texts), self.native.dim), np.float32))
        rows: list[int] = []
        batch: list[tuple[str, LanguagePack | None]] = []
        # By length, as a pass is as long as its longest text.
        for row in sorted(range(len(texts)), key=lambda row: len(texts[row][1])):
            language, text = texts[row]
            pack = packs[language]
            if isinstance(pack, str):
                result.errors[row] = pack
            else:
                rows.append(row)
                batch.append((text, pack))
        size = ROWS_A_PASS[self.native.device.type]
        for start in range(0, len(batch), size):
            features = F.normalize(encode_mixed(self.native, batch[start : start + size]), dim=-1)
            result.vectors[rows[start : start + size]] = features.cpu().numpy()
        return result

    def check(self) -> None:
        """Raise unless a text comes out as a unit vector."""
        encoded = self.encode([("en", "dog")], {"en": None})
        if not np.isclose(np.linalg.norm(encoded.vectors[0]), 1, atol=1e-3):
            raise RuntimeError(f"native {self.native.name!r} does not encode")


class ImageEngine:
    def __init__(self, native: str, threads: int) -> None:
        self.native = _load(native, threads)

    @torch.inference_mode()
    def encode(self, images: Sequence[bytes]) -> Encoded:
        """Encoded images (PNG, JPEG, …) to vectors."""
        result = Encoded(np.zeros((len(images), self.native.dim), np.float32))
        rows, pixels = [], []
        for row, data in enumerate(images):
            try:
                pixels.append(self.native.preprocess(open_image(data)))
                rows.append(row)
            except BadImage as error:
                result.errors[row] = str(error)
        if pixels:
            features = self.native.encode_image(torch.stack(pixels)).float()
            result.vectors[rows] = F.normalize(features, dim=-1).cpu().numpy()
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

    def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        return [
            self.collections[query.collection].search(
                query.vector,
                query.k,
                offset=query.offset,
                language=query.language,
                source=query.source,
            )
            for query in queries
        ]

    def upsert(self, collection: str, entries: list[Entry], vectors: Vectors) -> int:
        """Write and return how many; all are on disk, or in the engine's log, on return."""
        return self.collections[collection].upsert(entries, vectors)

    def languages(self) -> dict[str, int]:
        """Captions of each language."""
        return self.collections[CAPTIONS].languages()

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
