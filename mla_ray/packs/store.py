"""Pack store: the language packs in a folder or at an fsspec URL, which may change at any time.

    STORE/de/card.json  STORE/de/weights.safetensors  …      one folder per pack, any folder name

Readers need no lock. A pack that is incomplete, or that changes during a read, does not match the
hashes in its card. Until it is complete, the previously listed pack stays listed. A fault is
recorded for the bytes in which it was found, and is checked again when they change.
"""

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mla_ray.model.language import ENGLISH, UnknownLanguage, canonical, nearest
from mla_ray.model.recognition import recognised
from mla_ray.packs.card import RENEW, Card, parse_card
from mla_ray.packs.files import MAX_FILE_BYTES, NEEDED, PackError, fetch_files
from mla_ray.runtime.atomic import folders_in_replacement, recover_folder
from mla_ray.runtime.storage import as_path, patiently

if TYPE_CHECKING:  # they import torch, which takes seconds
    from mla_ray.model.native import Native
    from mla_ray.packs.pack import LanguagePack

MAX_PACKS = 1_000  # per store
# Consecutive scans that must miss a pack before it is dropped. A replacement takes two renames.
GRACE = 2

OLD_SERVES = "; the previous version is served"
"""Suffix of a fault's message while the previous version is served."""
NO_PAUSES = ()  # no retries, because the next scan or request tries again


@dataclass(frozen=True)
class Listed:
    """One pack of the store.

    Attributes:
        name: Folder name in the store.
        version: Hash of the card, which contains the hashes of the other files.
        card: The card.

    """

    name: str
    version: str
    card: Card


@dataclass(frozen=True)
class _Seen:
    """Result of reading a card. If there is a fault, `listed` is the previous result."""

    key: str  # key of the file in an object store
    version: str | None  # hash of the bytes, or None if they could not be read
    listed: Listed | None
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """Result of a scan.

    Attributes:
        packs: Packs by language.
        broken: Reasons why other packs cannot be served, by folder name.

    """

    packs: dict[str, Listed] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """Sorted tags of English and of all languages with a pack."""
        return sorted({ENGLISH, *self.packs})

    def resolve(self, tag: str) -> str | None:
        """Return the language that serves a BCP-47 tag (`nearest`), or None."""
        try:
            return nearest(canonical(tag), self.languages)
        except UnknownLanguage:
            return None


class PackStore:
    """Store of packs for one native.

    Args:
        url: Folder or fsspec URL.
        fingerprint: The native's fingerprint.
        fingerprint_v1: The native's fingerprint by rule 1. Packs that have it are accepted, too.

    """

    def __init__(self, url: str, fingerprint: str, fingerprint_v1: str = "") -> None:
        self.url = url
        self.fingerprint, self.fingerprint_v1 = fingerprint, fingerprint_v1
        # Unlike `storage.as_path`, this does not resolve links, so a link can move to a new store.
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._cards: dict[str, _Seen] = {}  # by name
        self._missed: dict[str, int] = {}

    def scan(self) -> Listing:
        """List the packs. In an object store, only cards that have changed are read.

        If a card cannot be read, the previous version stays listed and `Listing.broken` reports the
        fault. A store that does not exist is empty.

        Raises:
            OSError: The store is not available.

        """
        self._fs.invalidate_cache()
        names = patiently(self._names, NO_PAUSES, f"listing {self.url}")
        there = {name for name in names if self._read(name)}
        for name in [name for name in self._cards if name not in there]:
            self._missed[name] = self._missed.get(name, 0) + 1
            if self._missed[name] >= GRACE:
                del self._cards[name], self._missed[name]
        listing = Listing()
        for name, seen in sorted(self._cards.items()):
            if seen.fault:
                listing.broken[name] = seen.fault + (OLD_SERVES if seen.listed else "")
            if seen.listed is None:
                continue
            language = seen.listed.card.language
            if language in listing.packs:
                other = listing.packs[language].name
                listing.broken[name] = f"a second pack for {language!r}, after {other}"
            else:
                listing.packs[language] = seen.listed
        return listing

    def load(self, listed: Listed, native: "Native") -> "LanguagePack":
        """Load a pack as it was listed.

        Raises:
            PackError: The pack is damaged, missing, or has changed since it was listed.
            OSError: The store is not available.

        """
        from mla_ray.packs.pack import LanguagePack

        with tempfile.TemporaryDirectory(prefix="mla-pack-") as scratch:
            folder = Path(scratch) / "pack"
            folder.mkdir()
            fetch_files(as_path(self.url) / listed.name, folder, pauses=NO_PAUSES)
            there = f"{self._root}/{listed.name}"
            if _version((folder / "card.json").read_bytes()) != listed.version:
                raise PackError(f"{there}: replaced while it was read")
            try:
                return LanguagePack.load(folder, native, there, mapped=True)
            except PackError as error:
                raise PackError(str(error).replace(str(folder), there)) from error

    def state(self, listed: Listed) -> tuple[str, ...]:
        """Return a value that changes when a file of the pack changes, appears or disappears."""
        return tuple(self._key(f"{self._root}/{listed.name}/{file}") for file in NEEDED)

    def _key(self, path: str) -> str:
        try:
            return str(self._fs.ukey(path))
        except FileNotFoundError:
            return ""

    def _names(self) -> set[str]:
        names = self._folders()
        if self._local and (places := folders_in_replacement(names)):
            for place in places:
                recover_folder(Path(self._root) / place)
            names = self._folders()
        # A leading dot marks a pack that is being written (`LanguagePack.save`).
        return set(sorted(name for name in names if not name.startswith("."))[:MAX_PACKS])

    def _folders(self) -> set[str]:
        try:
            entries = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return set()
        folders = (entry["name"] for entry in entries if entry["type"] == "directory")
        return {folder.rstrip("/").rpartition("/")[2] for folder in folders}

    def _read(self, name: str) -> bool:
        """Read a card if it may have changed. Return False if the folder has none."""
        path = f"{self._root}/{name}/card.json"
        seen = self._cards.get(name)
        key, version = "", None
        try:
            # A local key consists of size and time stamps, which two quick writes may share.
            if not self._local:
                key = self._fs.ukey(path)
                if seen and seen.key == key and not seen.fault:
                    self._missed.pop(name, None)
                    return True
            limit = MAX_FILE_BYTES["card.json"]
            read = partial(self._fs.cat_file, path, end=limit + 1)
            data = patiently(read, NO_PAUSES, f"reading {path}")
            version = _version(data)
            if seen and seen.version == version:
                self._cards[name] = replace(seen, key=key)
            else:
                if len(data) > limit:
                    raise PackError(f"{path}: larger than {limit} bytes")
                self._cards[name] = _Seen(key, version, self._listed(name, data, path))
        except FileNotFoundError:
            return False  # not a pack, or one that is being replaced
        except (ValueError, OSError) as error:
            before = seen.listed if seen else None
            self._cards[name] = _Seen(key, version, before, str(error))
        self._missed.pop(name, None)
        return True

    def _listed(self, name: str, data: bytes, path: str) -> Listed:
        card = parse_card(data, path)
        ours = self.fingerprint, self.fingerprint_v1
        if not recognised(card.fingerprint, *ours, f"{self._root}/{name}", RENEW):
            raise PackError(
                f"made for native {card.native!r} ({card.fingerprint[:12]}), "
                f"not for this one ({self.fingerprint[:12]})"
            )
        if card.language == ENGLISH:
            raise PackError(f"{path}: language {card.language!r} needs no pack; remove the folder")
        return Listed(name, _version(data), card)


def _version(card: bytes) -> str:
    return hashlib.sha256(card).hexdigest()[:16]
