"""Engines that encode texts and images, without Ray."""

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mla_ray.data.images import STRANGER, BadImage, decode_image
from mla_ray.index.encoders import Encoders
from mla_ray.model.batches import by_length
from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.mixed_batch import read_mixed
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import PackStore
from mla_ray.serving.engines import Encoded, Fault, Identity, Text
from mla_ray.serving.schemas import ProblemKind

# Rows of one forward pass. The activations of a small batch stay in the cache of a CPU: 2,600 texts
# a second with 32 rows, 2,150 with 128 (emoji-clip, two cores). A GPU needs large batches.
ROWS_A_PASS = {"cpu": 32, "cuda": 1024}

log = logging.getLogger(__name__)


def load_native(name: str, threads: int) -> Native:
    """Load a native, and set the number of PyTorch threads of this process. 0 means all cores."""
    torch.set_num_threads(threads or os.cpu_count() or 1)  # Ray starts workers with one thread
    return Encoders(name, {}).native  # the next index of this native starts without loading it


class PreparedPacks(NamedTuple):
    """Packs by language, and the reason by language for those that cannot be loaded."""

    packs: dict[str, LanguagePack | None]
    """None for English, which needs no pack."""
    faults: dict[str, Fault]


class TextEngine:
    """Text encoder: one native and the packs of a store."""

    def __init__(self, native: Native, store: str, max_packs: int) -> None:
        self.native = native
        packs = PackStore(store, self.native.fingerprint, self.native.fingerprint_v1)
        self._max_packs = max_packs
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
        result.put(rows, mixed.features.cpu().numpy(), encoders)

    def warm(self) -> None:
        """Load the packs of the store, at most as many as stay in memory, and encode a text.

        The first requests are then as fast as later ones. A pack that cannot be loaded is an error
        of its own requests only.
        """
        languages = {ENGLISH, *sorted(self.library.listing.packs)[: self._max_packs]}
        prepared = self.prepare(languages)
        self.encode([Text(language, "dog") for language in languages], prepared)

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

    def __init__(self, native: Native) -> None:
        self.native = native

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
            features = self.native.encode_image(torch.stack(pixels)).float().cpu().numpy()
            result.put(rows, features, [f"native {self.native.name!r}"] * len(rows))
        return result

    @torch.inference_mode()
    def warm(self) -> None:
        """Encode a black image. The first request is then as fast as later ones."""
        self.native.encode_image(self.native.preprocess(Image.new("RGB", (64, 64)))[None])

    def check(self) -> None:
        """Check the first weight tensor of the image tower.

        Raises:
            RuntimeError: A weight is not finite.

        """
        weight = next(self.native.model.visual.parameters())
        if not bool(torch.isfinite(weight).all()):
            raise RuntimeError(f"native {self.native.name!r}: image weights are not finite")
