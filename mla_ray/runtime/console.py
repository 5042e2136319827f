"""Progress on standard error, so that standard output has nothing but the result.

Progress is shown as bars in a terminal, and as lines elsewhere, for example in a file.
"""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mla_ray.runtime.job_log import progress_lines
from mla_ray.runtime.progress import Progress as Step
from mla_ray.runtime.progress import Report

EVERY_S = 10.0
"""Seconds between two lines of progress if there is no terminal."""
WIDTH = 200
"""Columns if there is no terminal. Wide enough that tables do not break words."""


def _console(error: bool) -> Console:
    stream = sys.stderr if error else sys.stdout
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(stderr=error)
    # On a dumb terminal rich ignores the width unless a height is given, too.
    return Console(stderr=error, width=WIDTH, height=25)


stderr, stdout = _console(error=True), _console(error=False)


@contextmanager
def bars() -> Iterator[Report]:
    """Yield a `Report` that shows one bar per phase; a finished phase keeps its bar.

    Without a terminal it prints a line when a phase begins and ends, and one at least every
    `EVERY_S` seconds.
    """
    with _bars() if stderr.is_terminal else lines(EVERY_S) as report:
        yield report


@contextmanager
def lines(every_s: float) -> Iterator[Report]:
    """Yield a `Report` that prints lines of progress on standard error.

    If nothing is reported for `every_s` seconds, a line says that the work goes on.
    """
    said, over, lock = threading.Event(), threading.Event(), threading.Lock()
    last = "starting"

    def write(line: str) -> None:
        nonlocal last
        said.set()
        last = line
        stderr.print(line, markup=False, highlight=False)

    def repeat() -> None:
        while not over.wait(every_s):
            with lock:
                if not said.is_set():
                    stderr.print(f"still working, last: {last}", markup=False, highlight=False)
                said.clear()

    report_line = progress_lines(write, every_s)

    def report(step: Step) -> None:
        with lock:
            report_line(step)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        over.set()
        thread.join()


@contextmanager
def _bars() -> Iterator[Report]:
    with Progress(
        TextColumn("{task.description:>16}"),
        BarColumn(32),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=stderr,
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def report(step: Step) -> None:
            if step.phase not in tasks:
                tasks[step.phase] = progress.add_task(step.phase, total=step.total, note="")
            progress.update(
                tasks[step.phase], completed=step.done, total=step.total, note=step.note
            )

        yield report


def print_dropped(count: int, problems: Sequence[object]) -> None:
    """Print how many rows were dropped and the problem of the first; print nothing if none was."""
    if count:
        line = f"dropped {count:,} invalid rows, the first: {problems[0]}"
        stderr.print(line, markup=False)  # a problem quotes the table, which may contain markup
