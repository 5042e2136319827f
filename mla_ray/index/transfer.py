"""Moving of points between collections of one native, on any two engines.

Point ids, payload and vectors stay as they are, and nothing is encoded again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mla_ray.index.backend import CollectionConfig, Point, are_equal
from mla_ray.index.batches import Reservoir, batched
from mla_ray.index.collection import BATCH, CaptionIndex
from mla_ray.index.existing import configs_at, open_like
from mla_ray.runtime.progress import Report, counting
from mla_ray.runtime.storage import patiently

SAMPLE = 1000
"""Points that are compared after a transfer, drawn at random from all."""


class PointSource(Protocol):
    """Points of one collection: the collection itself, or its part of a snapshot."""

    def count(self) -> int:
        """Return the number of points."""
        ...

    def points(self) -> Iterator[Point]:
        """Yield all points with their vectors."""
        ...


@dataclass(frozen=True)
class Transferred:
    """Numbers of points of a transfer."""

    points: int  # of the source
    written: int  # the others were there already
    checked: int  # compared afterwards


def copy_index(
    source: str, target: str, collections: Sequence[str], report: Report
) -> dict[str, Transferred]:
    """Copy collections from one index to another, and check the result.

    Points of the target that the source does not have stay. After an interruption, the same call
    writes only what is missing or differs. All collections are opened before the first write.

    Args:
        source: URL of the index to read, as for `CaptionIndex.open`.
        target: URL of the index to write. Missing collections are created.
        collections: Names of the collections. Those that `source` does not have are left out.
        report: Receives progress.

    Returns:
        The numbers of points by collection.

    Raises:
        LookupError: `source` has none of the collections.
        ValueError: A collection of `target` holds vectors of another native, or `target` is
            `source`.
        RuntimeError: The check failed. For other errors see `CaptionIndex.open`.

    """
    if source == target:
        raise ValueError(f"{source} cannot be copied to itself; name another index to write")
    with ExitStack() as stack:
        pairs = {}
        for name, config in configs_at(source, collections).items():
            old = CaptionIndex.open(source, config.space, name, create=False)
            pairs[name] = stack.enter_context(old), config
        return transfer_all(pairs, target, report)


def transfer_all(
    sources: Mapping[str, tuple[PointSource, CollectionConfig]], target: str, report: Report
) -> dict[str, Transferred]:
    """Write collections, each with its configuration, to the index at `target`; check them.

    Raises:
        ValueError: A collection of `target` holds vectors of another native.
        RuntimeError: The check failed.

    """
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(open_like(target, name, config))
            for name, (_, config) in sources.items()
        }
        return {name: _transfer(sources[name][0], opened[name], name, report) for name in opened}


def _transfer(source: PointSource, target: CaptionIndex, name: str, report: Report) -> Transferred:
    advance = counting(report, name, source.count())
    before = target.count()
    sample: Reservoir[Point] = Reservoir(SAMPLE)
    points = written = new = 0
    for batch in batched(source.points(), BATCH):
        there = patiently(partial(target.stored, batch), what=f"reading {name}")
        changed = [p for p in batch if p.id not in there or not are_equal(p, there[p.id])]
        if changed:
            patiently(partial(target.write, changed), what=f"writing {name}")
        for point in batch:
            sample.offer(point)
        points += len(batch)
        written += len(changed)
        new += len(batch) - len(there)
        advance(len(batch))
    target.optimize()
    _check(target, name, before + new, sample.items)
    return Transferred(points, written, len(sample.items))


def _check(target: CaptionIndex, name: str, expected: int, sample: list[Point]) -> None:
    """Raise a RuntimeError unless the target has `expected` points and those of the sample."""
    again = "if nothing else writes to it, run the same command again"
    if (found := target.count()) != expected:
        raise RuntimeError(f"{name} has {found:,} points, expected {expected:,}; {again}")
    for batch in batched(sample, BATCH):
        there = target.stored(batch)
        for point in batch:
            if point.id not in there:
                raise RuntimeError(f"{name} lacks point {point.id} after the copy; {again}")
            if not are_equal(point, there[point.id]):
                raise RuntimeError(
                    f"point {point.id} of {name} has another vector or payload than the one that "
                    f"was written; {again}"
                )
