"""Streams of points in batches, and random samples of them."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


class Reservoir(Generic[T]):
    """At most `size` items of a stream, each with the same probability (reservoir sampling)."""

    def __init__(self, size: int) -> None:
        self.items: list[T] = []
        self._size = size
        self._seen = 0
        self._rng = np.random.default_rng()

    def offer(self, item: T) -> None:
        """Take the next item of the stream into the sample, or not."""
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := int(self._rng.integers(self._seen))) < self._size:
            self.items[place] = item
