"""Batches of texts of similar length, which need little padding."""

from collections.abc import Iterator, Sequence


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, sorted by text length, the shortest first.

    Args:
        lengths: Length of each text.
        size: Maximum number of rows in a batch.

    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]
