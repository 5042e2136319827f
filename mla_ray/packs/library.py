"""The packs in use: loaded from a store on demand, the least recently used leaving first.

What was served before stays in service until a pack that changed is whole.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mla_ray.model.language import ENGLISH
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.files import PackError
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import OLD_SERVES, Listed, Listing, PackStore

ATTEMPTS = 3  # to load a pack that may be changing

log = logging.getLogger(__name__)


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
        """Scan the store, and renew what changed of the packs in use."""
        for listed in self.rescan():
            self.renew(listed)
        return self.listing

    def rescan(self) -> list[Listed]:
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
                    self._note_fault(listing, named[name], refusal.why)
            self.listing = listing
            return changed

    def renew(self, listed: Listed) -> None:
        """Load a pack that changed. If it does not load, the one before stays in service."""
        try:
            pack = self._load_unless_refused(listed)
        except (PackError, OSError) as error:
            self._note_fault(self.listing, listed, str(error))
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
                return listed.version, self._load_unless_refused(listed)
            except PackError:
                nothing_new = before and before is self._refused.get(listed.name)
                if nothing_new or attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(0.1)  # it is being replaced, most likely
                self.refresh()
        raise AssertionError("unreachable")

    def _load_unless_refused(self, listed: Listed) -> LanguagePack:
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
            self._note_fault(self.listing, listed, str(error))
            log.warning("pack %s: %s", listed.name, error)
            raise PackError(str(error)) from error
        self._refused.pop(listed.name, None)
        return pack

    def _note_fault(self, listing: Listing, listed: Listed, fault: str) -> None:
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
