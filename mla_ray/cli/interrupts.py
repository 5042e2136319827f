"""What Ctrl-C does to a command that can go on: it saves, says where, and ends with 130."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mla_ray.runtime.exit_codes import Exit
from mla_ray.runtime.progress import Stopped
from mla_ray.runtime.stop_signals import StopEvent


@contextmanager
def goes_on(run: str, stop: StopEvent) -> Iterator[None]:
    """For a run that heeds `stop` once it trains; before that a signal ends it at once."""
    try:
        yield
    except (Stopped, KeyboardInterrupt) as fault:
        typer.echo(
            f"mla: stopped; what was done is saved in {run}, and the same command goes on there",
            err=True,
        )
        code = Exit.INTERRUPTED if stop.received is None else Exit(128 + stop.received)
        raise typer.Exit(code) from fault
