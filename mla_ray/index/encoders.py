"""The native and the packs that encode the entries of an index, loaded when they are needed.

What encodes an entry, and the hash of its point, are known from files. If nothing has to be
encoded, torch is not imported.

Shapes: N texts or images, E joint embedding size.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mla_ray.data.keys import key_of
from mla_ray.data.video import DECODING
from mla_ray.index.backend import VectorSpace
from mla_ray.index.entry import Entry
from mla_ray.model.directions import Floats
from mla_ray.model.identity import NativeIdentity, memory_of, recall, remember
from mla_ray.model.language import ENGLISH
from mla_ray.packs.card import Card, read_card

if TYPE_CHECKING:
    from PIL import Image

    from mla_ray.model.native import Native
    from mla_ray.packs.pack import LanguagePack

HASH_RULE = 1
"""Number of the rule of `Encoders.hash_of`. Increase it if an entry that was encoded before now has
another vector, but for the decoding of images, which has its own version."""

_fields = attrgetter(*(field.name for field in fields(Entry)))


def caption_hash(entry: Entry, fingerprint: str, files: Mapping[str, str]) -> str | None:
    """Return the hash of a caption as `Encoders.hash_of` does.

    Args:
        entry: Entry of the caption.
        fingerprint: Fingerprint of the native.
        files: SHA-256 of the files of the caption's pack by name; empty for English.

    """
    if entry.language != ENGLISH and not files:
        return None
    return _hash(entry, fingerprint, *(files[name] for name in sorted(files)))


def _hash(entry: Entry, fingerprint: str, *encoder: object) -> str:
    return key_of(json.dumps([*_fields(entry), HASH_RULE, fingerprint, *encoder]))


class Encoders:
    """Native and packs that encode the entries of an index.

    Args:
        native: Native, or its name for `Native.load`.
        packs: Pack of each language, or its folder.
        device: Torch device of a native that is loaded here. The default is a GPU if there is one.

    """

    def __init__(
        self,
        native: "Native | str",
        packs: "Mapping[str, LanguagePack | str | Path]",
        device: str | None = None,
    ) -> None:
        self.languages = sorted({ENGLISH, *packs})
        self._native = native
        self._device = device
        self._folders = {tag: str(p) for tag, p in packs.items() if isinstance(p, str | Path)}
        self._loaded = {tag: p for tag, p in packs.items() if not isinstance(p, str | Path)}
        self._cards: dict[str, Card] = {tag: pack.card for tag, pack in self._loaded.items()}

    @cached_property
    def identity(self) -> NativeIdentity:
        """Identity of the native. The native is loaded if this machine does not know its files."""
        if not isinstance(self._native, str):
            return self._native.identity
        return recall(self._native) or self.native.identity

    @property
    def space(self) -> VectorSpace:
        """Vector space of the native."""
        native = self.identity
        return VectorSpace(native.name, native.fingerprint, native.dim, native.fingerprint_v1)

    @cached_property
    def native(self) -> "Native":
        """The native, loaded on first use.

        Raises:
            ValueError: Its files were replaced since its identity was read.

        """
        if not isinstance(self._native, str):
            return self._native
        import torch

        from mla_ray.model.native import Native

        file = memory_of(self._native)
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        native = Native.load(self._native, device)
        remember(self._native, file, native.identity)
        if self.__dict__.get("identity", native.identity) != native.identity:
            raise ValueError(f"native {self._native!r} was replaced during the run; run again")
        return native

    def check(self) -> None:
        """Check that every pack is for its language and for this native, by its card.

        Raises:
            ValueError: A pack is for another language.
            PackError: A card is missing or invalid, or its pack is for another native.

        """
        for language, folder in self._folders.items():
            card = self._card(language)
            if card.language != language:
                raise ValueError(f"{folder} is a pack for {card.language!r}, not for {language!r}")
            card.check(self.identity, folder)

    def load(self) -> None:
        """Load the native and all packs.

        Raises:
            ValueError: One of them cannot be loaded, or was replaced since it was checked.
            FileNotFoundError: The native does not exist.

        """
        for language in self._folders:
            self._pack(language)
        _ = self.native

    def hash_of(self, entry: Entry, image_key: str = "") -> str | None:
        """Return the hash of an entry's content and of what encodes it, 32 hexadecimal digits.

        An entry whose point has this hash need not be encoded again. The hash covers all fields of
        the entry. For an image it covers its bytes, the version of their decoding and the native.
        For a caption it covers the native and the files of the pack.

        Args:
            entry: Entry of an image or of a caption in one of `languages`.
            image_key: Key of an image's bytes (`key_of`).

        Returns:
            None for a caption whose pack was never saved, because its card has no hashes.

        """
        fingerprint = self.identity.fingerprint
        if image_key:
            return _hash(entry, fingerprint, DECODING, image_key)
        files = {} if entry.language == ENGLISH else self._card(entry.language).sha256
        return caption_hash(entry, fingerprint, files)

    def encode_captions(self, language: str, texts: list[str]) -> Floats:
        """Encode captions in a language to features `[N, E]` float32, not normalized."""
        from mla_ray.evaluation.evaluation import encode_query

        packs = {} if language == ENGLISH else {language: self._pack(language)}
        return encode_query(self.native, packs, language, texts)

    def encode_images(self, pictures: "Iterable[Sequence[Image.Image]]") -> Iterator[Floats]:
        """Encode pictures, given as their frames, like `feature_store.encode_frames`."""
        coming = iter(pictures)
        for first in coming:  # without a picture nothing is loaded
            from mla_ray.data.feature_store import encode_frames

            yield from encode_frames(self.native, chain([first], coming))

    def _pack(self, language: str) -> "LanguagePack":
        """Return the pack of a language, loaded on first use."""
        if language not in self._loaded:
            from mla_ray.packs.pack import LanguagePack

            folder = self._folders[language]
            pack = LanguagePack.load(folder, self.native)
            if pack.card.sha256 != self._card(language).sha256:
                raise ValueError(f"{folder}: the pack was replaced during the run; run again")
            self._loaded[language] = pack
        return self._loaded[language]

    def _card(self, language: str) -> Card:
        if language not in self._cards:
            self._cards[language] = read_card(self._folders[language])
        return self._cards[language]
