"""Progress reports, independent of how they are shown (bars, log lines or not at all)."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State of one phase at one moment."""

    phase: str
    """Name of the phase."""
    done: int
    """Items that are done."""
    total: int | None
    """Items in all; None if unknown."""
    note: str = ""
    """Text to show beside the numbers."""


Report = Callable[[Progress], None]
"""Callback that receives progress."""


Advance = Callable[[int], None]
"""Callback that receives the number of newly done items. `counting` makes one from a `Report`."""


class Stopped(RuntimeError):
    """A stop request ended the work. The state is saved; the same call resumes from it."""


def counting(report: Report, phase: str, total: int | None) -> Advance:
    """Return an `Advance` that adds up the done items of a phase and reports the sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(phase, done, total))

    return advance
