"""Progress bars on standard error, so that standard output is the result alone."""

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

from mla_ray.runtime.progress import Progress as Step
from mla_ray.runtime.progress import Report

stderr = Console(stderr=True)
stdout = Console()


@contextmanager
def bars() -> Iterator[Report]:
    """One bar for each phase that is reported; a finished phase keeps its bar."""
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
    """Print how many rows were left out and what was wrong with the first; nothing if none was."""
    if count:
        line = f"dropped {count:,} invalid rows, the first: {problems[0]}"
        stderr.print(line, markup=False)  # a problem quotes the table
