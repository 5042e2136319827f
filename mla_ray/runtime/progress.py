"""How far something is, for whoever shows it: bars, log lines, nobody."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One figure: a phase, how far it is, of how many (None: nobody knows), what to show beside."""

    phase: str
    done: int
    total: int | None
    note: str = ""


Report = Callable[[Progress], None]


Advance = Callable[[int], None]
"""Called with how many more are done, by who does them; `counting` makes one of a `Report`."""


class Stopped(RuntimeError):
    """Somebody asked for an end. All there was is saved; the same again goes on from there."""


def counting(report: Report, phase: str, total: int | None) -> Advance:
    """An `Advance` that reports how many of a phase are done in all."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(phase, done, total))

    return advance
