"""A pack store: language packs side by side in a folder or at an fsspec URL, served as they change.

    STORE/de/card.json  STORE/de/weights.safetensors  …      one folder a pack; any folder name

`PackStore` lists what is there; `PackLibrary` holds the packs in use, loaded on demand, the least
recently used leaving first. Readers need no lock: a pack that is half written, or changes while it
is read, fails its card's hashes, and what was served before stays until it is whole. What is found
wrong holds for the bytes it was found in, and is looked at again when they change.
"""

import hashlib
import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mla_ray.model.language import ENGLISH, UnknownLanguage, canonical
from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.packs.card import MAX_FILE_BYTES, RENEW, Card, PackError, parse_card, read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.place import settle, unsettled

MAX_PACKS = 1_000  # looked at in one store
GRACE = 2  # scans in a row that must miss a pack before it is gone: a swap is two renames

ATTEMPTS = 3  # to load a pack that may be changing
OLD_SERVES = "; the version before it is served"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """One pack of the store. `version` is a hash of its card, and so of all its files."""

    name: str
    version: str
    card: Card


@dataclass(frozen=True)
class _Seen:
    """What the bytes of a card said. With a fault, `listed` is what those before them said."""

    key: str  # of the file in an object store
    version: str | None  # of the bytes; None if there were none to be had
    listed: Listed | None
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a scan found: packs by language, and why others cannot be served, by folder name."""

    packs: dict[str, Listed] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        return sorted({ENGLISH, *self.packs})

    def resolve(self, tag: str) -> str | None:
        """The language that answers a BCP-47 tag, or None: `de-AT` and `DE_at` are `de`'s.

        The lookup of RFC 4647, section 3.4: subtags fall from the end until something matches.
        """
        try:
            tag = canonical(tag)
        except UnknownLanguage:
            return None
        known = {language.lower(): language for language in self.languages}
        subtags = tag.lower().split("-")
        for end in range(len(subtags), 0, -1):
            found = known.get("-".join(subtags[:end]))
            if found:
                return found
        return None


class PackStore:
    """The packs under `url` that are made for the native of `fingerprint`.

    Args:
        url: a folder or fsspec URL.
        fingerprint: the native's.
        fingerprint_v1: the native's by the rule of before; packs that have it are taken, too.

    """

    def __init__(self, url: str, fingerprint: str, fingerprint_v1: str = "") -> None:
        self.url = url
        self.fingerprint, self.fingerprint_v1 = fingerprint, fingerprint_v1
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._cards: dict[str, _Seen] = {}  # by name
        self._missed: dict[str, int] = {}

    def scan(self) -> Listing:
        """List the store anew; of an object store only cards that changed are read.

        A card that cannot be read counts as not yet changed: what it said before is listed, and the
        fault told. Raises OSError if the store cannot be reached. A store that does not exist is
        empty.
        """
        self._fs.invalidate_cache()
        names = self._names()
        for name in names:
            self._read(name)
        for name in [name for name in self._cards if name not in names]:
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

    def load(self, listed: Listed, native: Native) -> LanguagePack:
        """The pack as it was listed; PackError if it is damaged, gone, or has changed since."""
        with tempfile.TemporaryDirectory(prefix="mla-pack-") as scratch:
            folder = Path(scratch) / "pack"
            folder.mkdir()
            for file, limit in MAX_FILE_BYTES.items():
                path = f"{self._root}/{listed.name}/{file}"
                try:
                    if self._fs.size(path) > limit:
                        raise PackError(f"{path}: larger than {limit} bytes")
                    self._fs.get_file(path, str(folder / file))
                except FileNotFoundError as error:
                    raise PackError(f"{path}: missing") from error
            there = f"{self._root}/{listed.name}"
            if _version((folder / "card.json").read_bytes()) != listed.version:
                raise PackError(f"{there}: replaced while it was read")
            try:
                return LanguagePack.load(folder, native, there)
            except PackError as error:
                raise PackError(str(error).replace(str(folder), there)) from error

    def state(self, listed: Listed) -> tuple[str, ...]:
        """Of a pack's files now: another one when any of them has changed, come or gone."""
        return tuple(self._key(f"{self._root}/{listed.name}/{file}") for file in MAX_FILE_BYTES)

    def _key(self, path: str) -> str:
        try:
            return str(self._fs.ukey(path))
        except FileNotFoundError:
            return ""

    def _names(self) -> set[str]:
        names = self._folders()
        if self._local and (places := unsettled(names)):
            for place in places:
                settle(Path(self._root) / place)
            names = self._folders()
        # A name with a dot in front is a pack being written (`LanguagePack.save`).
        return set(sorted(name for name in names if not name.startswith("."))[:MAX_PACKS])

    def _folders(self) -> set[str]:
        try:
            entries = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return set()
        folders = (entry["name"] for entry in entries if entry["type"] == "directory")
        return {folder.rstrip("/").rpartition("/")[2] for folder in folders}

    def _read(self, name: str) -> None:
        path = f"{self._root}/{name}/card.json"
        seen = self._cards.get(name)
        key, version = "", None
        try:
            # A disk's key is of size and times, and a clock has steps: two writes may be in one.
            if not self._local:
                key = self._fs.ukey(path)
                if seen and seen.key == key and not seen.fault:
                    self._missed.pop(name, None)
                    return
            limit = MAX_FILE_BYTES["card.json"]
            data = self._fs.cat_file(path, end=limit + 1)
            version = _version(data)
            if seen and seen.version == version:
                self._cards[name] = replace(seen, key=key)
            else:
                if len(data) > limit:
                    raise PackError(f"{path}: larger than {limit} bytes")
                self._cards[name] = _Seen(key, version, self._listed(name, data, path))
        except FileNotFoundError:
            return  # no pack, or one in the middle of a swap: counted as missed if it was known
        except (ValueError, OSError) as error:
            before = seen.listed if seen else None
            self._cards[name] = _Seen(key, version, before, str(error))
        self._missed.pop(name, None)

    def _listed(self, name: str, data: bytes, path: str) -> Listed:
        card = parse_card(data, path)
        ours = self.fingerprint, self.fingerprint_v1
        if not recognised(card.fingerprint, *ours, f"{self._root}/{name}", RENEW):
            raise PackError(
                f"made for native {card.native!r} ({card.fingerprint[:12]}), "
                f"not for this one ({self.fingerprint[:12]})"
            )
        if card.language == ENGLISH:
            raise PackError(f"{path}: language {card.language!r} is not one to acquire")
        return Listed(name, _version(data), card)


@dataclass(frozen=True)
class _Refusal:
    """Why a pack could not be loaded, and the files of which that is true."""

    files: tuple[str, tuple[str, ...]]
    why: str


class PackLibrary:
    """The packs in use on one native, at most `capacity` of them. Safe for many threads."""

    def __init__(self, store: PackStore, native: Native, capacity: int = 32) -> None:
        self.store = store
        self.native = native
        self.capacity = capacity
        self.listing = Listing()
        self._loaded: OrderedDict[str, tuple[str, LanguagePack]] = OrderedDict()  # version and pack
        self._refused: dict[str, _Refusal] = {}  # by the pack's name
        self._lock = threading.Lock()  # of listing and loaded; never held while loading
        self._loading: dict[str, threading.Lock] = {}
        self._scanning = threading.Lock()

    def refresh(self) -> Listing:
        """Look at the store, and renew what changed of the packs in use."""
        for listed in self.look():
            self.renew(listed)
        return self.listing

    def look(self) -> list[Listed]:
        """Scan the store, drop packs that are gone; returns those in use that have changed."""
        with self._scanning:
            listing = self.store.scan()
            with self._lock:
                changed = []
                for language, (version, _) in list(self._loaded.items()):
                    listed = listing.packs.get(language)
                    if listed is None:
                        del self._loaded[language]
                    elif listed.version != version:
                        changed.append(listed)
            named = {listed.name: listed for listed in listing.packs.values()}
            for name, refusal in list(self._refused.items()):
                if name not in named or named[name].version != refusal.files[0]:
                    self._refused.pop(name, None)
                elif name not in listing.broken:
                    self._tell(listing, named[name], refusal.why)
            self.listing = listing
            return changed

    def renew(self, listed: Listed) -> None:
        """Load a pack that changed. If it does not load, the one before stays in service."""
        try:
            pack = self._try(listed)
        except (PackError, OSError) as error:
            self._tell(self.listing, listed, str(error))
            return
        with self._lock:
            if listed.card.language in self._loaded:
                self._loaded[listed.card.language] = listed.version, pack

    def get(self, language: str) -> LanguagePack | None:
        """The pack of a language, loaded if need be; None for English, which needs none.

        Raises:
            KeyError: the store has no pack for it.
            PackError: it has one that cannot be loaded.

        """
        if language == ENGLISH:
            return None
        if pack := self._held(language):
            return pack
        with self._lock:
            loading = self._loading.setdefault(language, threading.Lock())
        with loading:  # others who want the same pack wait for it; nobody else does
            if pack := self._held(language):
                return pack
            if language not in self.listing.packs:
                self.refresh()  # someone else may have seen a new pack before we did
            version, pack = self._load(language)
            with self._lock:
                self._loaded[language] = version, pack
                while len(self._loaded) > self.capacity:
                    self._loaded.popitem(last=False)
            return pack

    @property
    def held(self) -> list[str]:
        """Languages whose packs are in memory, the least recently used first."""
        with self._lock:
            return list(self._loaded)

    def _load(self, language: str) -> tuple[str, LanguagePack]:
        for attempt in range(ATTEMPTS):
            listed = self.listing.packs[language]
            before = self._refused.get(listed.name)
            try:
                return listed.version, self._try(listed)
            except PackError:
                nothing_new = before and before is self._refused.get(listed.name)
                if nothing_new or attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(0.1)  # it is being replaced, most likely
                self.refresh()
        raise AssertionError("unreachable")

    def _try(self, listed: Listed) -> LanguagePack:
        """The pack; PackError at once for files that were refused before, until they change."""
        files = listed.version, self.store.state(listed)
        refusal = self._refused.get(listed.name)
        if refusal and refusal.files == files:
            raise PackError(refusal.why)
        try:
            pack = self.store.load(listed, self.native)
        except OSError:  # a store out of reach says nothing of the pack
            raise
        except Exception as error:  # whatever it is, it is this pack's
            self._refused[listed.name] = _Refusal(files, str(error))
            self._tell(self.listing, listed, str(error))
            log.warning("pack %s: %s", listed.name, error)
            raise PackError(str(error)) from error
        self._refused.pop(listed.name, None)
        return pack

    def _tell(self, listing: Listing, listed: Listed, fault: str) -> None:
        serves = listed.card.language in self._loaded
        listing.broken[listed.name] = fault + (OLD_SERVES if serves else "")

    def _held(self, language: str) -> LanguagePack | None:
        with self._lock:
            if language not in self._loaded:
                return None
            self._loaded.move_to_end(language)
            return self._loaded[language][1]


def load_packs(folders: Sequence[str | Path], native: Native) -> dict[str, LanguagePack]:
    """Packs by language; two of one language are refused."""
    packs: dict[str, LanguagePack] = {}
    for folder in folders:
        language = read_card(folder).language
        if language in packs:
            raise ValueError(f"{folder}: a second pack for {language!r}; pass one a language")
        packs[language] = LanguagePack.load(folder, native)
    return packs


def _version(card: bytes) -> str:
    return hashlib.sha256(card).hexdigest()[:16]
