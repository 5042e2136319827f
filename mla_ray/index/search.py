"""Pages of several searches that run together, with ties in a fixed order.

Shapes: E joint embedding size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mla_ray.index.backend import CollectionBackend, Nearest, Payload, PayloadFilter
from mla_ray.index.lexical import QueryText, words_of_query
from mla_ray.index.limits import MAX_HYBRID, MAX_K, MAX_OFFSET

MAX_TIES = 10_000
"""Most entries with equal scores that are read beyond a page to order them by id."""
DECIMALS = 6
"""Decimals of a score. Finer differences are float32 noise and would order ties at random."""

Hits = list[tuple[Payload, float]]
"""Payloads and rounded scores, best first."""


class Search(NamedTuple):
    """One search of a collection. `CaptionIndex.search` describes the fields."""

    vector: npt.NDArray[np.float32]  # [E]
    k: int = 10
    language: str | None = None
    source: str | None = None
    offset: int = 0
    min_score: float | None = None
    hybrid: QueryText | None = None

    @property
    def end(self) -> int:
        """Number of best entries that are read: those that are skipped, and the page."""
        return self.offset + self.k

    @property
    def where(self) -> PayloadFilter:
        """Filter of the entries."""
        given = {"language": self.language, "source": self.source}
        return {field: value for field, value in given.items() if value is not None}


def check(search: Search) -> None:
    """Raise a ValueError if `k`, `offset` or `min_score` is invalid, or not for a hybrid search."""
    k, offset, min_score = search.k, search.offset, search.min_score
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k is {k}, must be 1 to {MAX_K}; page with offset for more")
    if not 0 <= offset <= MAX_OFFSET:
        raise ValueError(f"offset is {offset}, must be 0 to {MAX_OFFSET}; narrow the search")
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"min_score is {min_score}, must be -1 to 1, as cosines are")
    if search.hybrid and min_score is not None:
        raise ValueError("min_score is for cosines, and hybrid scores are ranks; leave it out")
    if search.hybrid and search.end > MAX_HYBRID:
        raise ValueError(
            f"a hybrid search ends at {MAX_HYBRID} entries, offset + k is {search.end}; narrow the "
            "search"
        )


def pages(
    backend: CollectionBackend, searches: Sequence[Search], units: Sequence[list[float]]
) -> list[Hits]:
    """Run searches together and return the page of each.

    Args:
        backend: The collection.
        searches: Searches that `check` accepts.
        units: Vector `[E]` of each search, of unit length.

    """
    found: list[Hits] = [[] for _ in searches]
    words = [words_of_query(search.hybrid) if search.hybrid else None for search in searches]
    # Engines order equal scores arbitrarily. One more entry than requested shows whether the page
    # ends inside a tie. If so, read on until the tie is complete and can be ordered.
    limits = {row: search.end + 1 for row, search in enumerate(searches)}
    while limits:
        asked = [
            Nearest(units[row], limit, searches[row].where, words[row])
            for row, limit in limits.items()
        ]
        rows = list(limits)
        for row, answer in zip(rows, backend.search(asked), strict=True):
            limit, end = limits.pop(row), searches[row].end
            found[row] = [(payload, round(score, DECIMALS)) for payload, score in answer]
            tie_is_cut = len(answer) == limit and found[row][-1][1] == found[row][end - 1][1]
            if tie_is_cut and limit < end + MAX_TIES:
                limits[row] = min(2 * limit, end + MAX_TIES)
    return [_page(hits, search) for hits, search in zip(found, searches, strict=True)]


def _page(hits: Hits, search: Search) -> Hits:
    """Return the page of a search out of its hits and all before them."""

    def place(hit: tuple[Payload, float]) -> tuple[float, str, str, str]:
        payload, score = hit
        return -score, payload["id"], payload["language"], payload["source"]

    page = sorted(hits, key=place)[search.offset : search.end]
    # An engine's own threshold compares unrounded scores. A hit whose rounded score equals
    # `min_score` would then be returned or not at random.
    return [hit for hit in page if search.min_score is None or hit[1] >= search.min_score]
