"""In-memory cache of packs, loaded on demand from a store.

The least recently used pack is evicted first. If a pack changes, the old version is served until
the new version has loaded.
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
from mla_ray.packs.card import by_language
from mla_ray.packs.files import PackError
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.store import OLD_SERVES, Listed, Listing, PackStore

ATTEMPTS = 3  # to load a pack that may be changing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Refusal:
    """Reason why a pack could not be loaded, and the version and state of its files."""

    files: tuple[str, tuple[str, ...]]
    why: str


class PackLibrary:
    """Cache of the packs in use on one native. Safe for use from several threads.

    Args:
        store: Store that holds the packs.
        native: Native that the packs are loaded on.
        capacity: Maximum number of packs in memory.

    """

    def __init__(self, store: PackStore, native: Native, capacity: int = 32) -> None:
        self.store = store
        self.native = native
        self.capacity = capacity
        self.listing = Listing()
        self._loaded: OrderedDict[str, tuple[str, LanguagePack]] = OrderedDict()  # version and pack
        self._refused: dict[str, _Refusal] = {}  # by name of the pack
        self._lock = threading.Lock()  # guards listing and loaded, never held while loading
        self._loading: dict[str, threading.Lock] = {}
        self._scanning = threading.Lock()

    def refresh(self) -> Listing:
        """Scan the store, and reload the packs in use that have changed.

        Raises:
            OSError: The store is not available.

        """
        for listed in self.rescan():
            self.renew(listed)
        return self.listing

    def rescan(self) -> list[Listed]:
        """Scan the store and drop packs that are gone.

        Returns:
            The packs in use that have changed. Pass each to `renew`.

        Raises:
            OSError: The store is not available.

        """
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
        """Load the new version of a pack. If loading fails, the old version stays in use."""
        try:
            pack = self._load_unless_refused(listed)
        except (PackError, OSError) as error:
            self._note_fault(self.listing, listed, str(error))
            return
        with self._lock:
            if listed.card.language in self._loaded:
                self._loaded[listed.card.language] = listed.version, pack

    def get(self, language: str) -> LanguagePack | None:
        """Return the pack of a language, loading it if necessary.

        Returns:
            The pack, or None for English, which needs no pack.

        Raises:
            KeyError: The store has no pack for the language.
            PackError: The pack cannot be loaded.
            OSError: The store is not available.

        """
        if language == ENGLISH:
            return None
        if pack := self._held(language):
            return pack
        with self._lock:
            loading = self._loading.setdefault(language, threading.Lock())
        with loading:  # only requests for the same pack wait
            if pack := self._held(language):
                return pack
            if language not in self.listing.packs:
                self.refresh()  # the store may have a new pack since the last scan
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
                time.sleep(0.1)  # a writer is probably replacing the pack
                self.refresh()
        raise AssertionError("unreachable")

    def _load_unless_refused(self, listed: Listed) -> LanguagePack:
        """Load a pack, unless the same files could not be loaded before.

        Raises:
            PackError: The pack cannot be loaded. Known faulty files fail immediately until they
                change.

        """
        files = listed.version, self.store.state(listed)
        refusal = self._refused.get(listed.name)
        if refusal and refusal.files == files:
            raise PackError(refusal.why)
        try:
            pack = self.store.load(listed, self.native)
        except OSError:  # the store is not available, and the pack may be fine
            raise
        except Exception as error:  # any other error marks this pack as faulty
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
    """Load the packs in several folders.

    Returns:
        Packs by language.

    Raises:
        ValueError: Two packs have the same language.
        PackError: A pack cannot be loaded.

    """
    return {tag: LanguagePack.load(folder, native) for tag, folder in by_language(folders).items()}
