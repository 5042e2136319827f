"""Batches of texts of similar length, which need little padding."""

from collections.abc import Iterator, Sequence

MAX_TOKENS = {"cpu": 512, "cuda": 65_536}
"""Padded tokens of a batch by type of device. A CPU loses little with few, and has less padding and
activations that fit into its caches. A GPU is idle with few."""


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of row numbers, sorted by text length, the shortest first.

    Args:
        lengths: Length of each text.
        size: Maximum number of rows in a batch.

    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def by_tokens(lengths: Sequence[int], device: str) -> Iterator[list[int]]:
    """Yield batches of row numbers, sorted by text length, the longest first.

    A batch has at most `MAX_TOKENS` tokens after padding to its longest text, or a single text.

    Args:
        lengths: Number of tokens of each text.
        device: Type of the device that encodes them, such as `cuda`.

    """
    most = MAX_TOKENS.get(device, MAX_TOKENS["cpu"])
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        size = max(1, most // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
