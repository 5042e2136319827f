"""A pack store: language packs side by side in a folder or at an fsspec URL, served as they change.

    STORE/de/card.json  STORE/de/weights.safetensors  …      one folder a pack; any folder name

Readers need no lock: a pack that is half written, or changes while it is read, fails its card's
hashes, and what was listed before stays until it is whole. What is found wrong holds for the bytes
it was found in, and is looked at again when they change.
"""

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mla_ray.model.language import ENGLISH, UnknownLanguage, canonical, nearest
from mla_ray.model.native import Native
from mla_ray.model.recognition import recognised
from mla_ray.packs.card import RENEW, Card, parse_card
from mla_ray.packs.files import MAX_FILE_BYTES, NEEDED, PackError, fetch_files
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.atomic import folders_in_replacement, recover_folder
from mla_ray.runtime.storage import as_path, patiently

MAX_PACKS = 1_000  # looked at in one store
GRACE = 2  # scans in a row that must miss a pack before it is gone: a swap is two renames

OLD_SERVES = "; the version before it is served"
NO_PAUSES = ()  # storage that is away is not waited for: the next scan or request tries again


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
        """The language that answers a BCP-47 tag, as `nearest` has it, or None if none does."""
        try:
            return nearest(canonical(tag), self.languages)
        except UnknownLanguage:
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
        # Not `storage.at`, which resolves links once: a link to a newer store is followed.
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
        names = patiently(self._names, NO_PAUSES, f"listing {self.url}")
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
            fetch_files(as_path(self.url) / listed.name, folder, pauses=NO_PAUSES)
            there = f"{self._root}/{listed.name}"
            if _version((folder / "card.json").read_bytes()) != listed.version:
                raise PackError(f"{there}: replaced while it was read")
            try:
                return LanguagePack.load(folder, native, there)
            except PackError as error:
                raise PackError(str(error).replace(str(folder), there)) from error

    def state(self, listed: Listed) -> tuple[str, ...]:
        """Of a pack's files now: another one when any of them has changed, come or gone."""
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


def _version(card: bytes) -> str:
    return hashlib.sha256(card).hexdigest()[:16]
