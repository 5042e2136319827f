"""Hashes that an index has of a table's entries, which tell what need not be encoded again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice

import numpy as np

from mla_ray.index.backend import SCROLL, VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.runtime.storage import patiently


class StoredHashes:
    """Set of hashes of points (`Encoders.hash_of`). It takes 16 bytes a hash.

    Args:
        hashes: Hashes in hex. None stands for an entry without one.

    Attributes:
        lacking: Number of entries without a hash.

    """

    def __init__(self, hashes: Iterable[str | None] = ()) -> None:
        self.lacking = 0
        self._sorted = np.unique(np.fromiter(self._bytes_of(hashes), "S16"))

    def _bytes_of(self, hashes: Iterable[str | None]) -> Iterator[bytes]:
        for value in hashes:
            if value is None:
                self.lacking += 1
            else:
                yield bytes.fromhex(value)

    @classmethod
    def of(
        cls, collections: Mapping[str, CaptionIndex], entries: Iterable[Entry]
    ) -> "StoredHashes":
        """Ask open collections for the hashes of images and captions, many in one request.

        Args:
            collections: The collections by name. Entries of others have no hash.
            entries: The entries. Their number is not limited: they are taken in batches.

        Raises:
            ConnectionError: The server stayed unavailable for longer than `storage.PAUSES`.

        """
        return cls(_hashes_in(collections, iter(entries)))

    @classmethod
    def at(cls, url: str, space: VectorSpace, entries: Iterable[Entry]) -> "StoredHashes":
        """Ask the collections at `url`, which need not exist.

        Raises:
            PermissionError: This process may not write to a collection's folder.
            ConnectionError: The server stayed unavailable for longer than `storage.PAUSES`.

        """
        with ExitStack() as stack:
            collections = {}
            for name in (IMAGES, CAPTIONS):
                with suppress(LookupError):  # it is created later
                    index = CaptionIndex.open(url, space, name, create=False)
                    collections[name] = stack.enter_context(index)
                    index.check_writable()
            return cls.of(collections, entries)

    def __contains__(self, hash_: str | None) -> bool:
        """Return whether an entry with this hash is stored. None never is."""
        if hash_ is None or not len(self._sorted):
            return False
        key = bytes.fromhex(hash_).rstrip(b"\0")  # as numpy returns it
        place = int(np.searchsorted(self._sorted, np.bytes_(key)))
        return place < len(self._sorted) and bool(self._sorted[place] == key)


def _hashes_in(
    collections: Mapping[str, CaptionIndex], entries: Iterator[Entry]
) -> Iterator[str | None]:
    while batch := dict.fromkeys(islice(entries, 2 * SCROLL)):  # an image may be in many rows
        for name in (IMAGES, CAPTIONS):
            of_name = [entry for entry in batch if bool(entry.language) == (name == CAPTIONS)]
            if index := collections.get(name):
                yield from patiently(partial(index.hashes, of_name), what=f"reading {name}")
            else:
                yield from (None for _ in of_name)
