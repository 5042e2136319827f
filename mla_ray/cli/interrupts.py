"""Handling of Ctrl-C in commands that can be resumed: they save and exit with code 130."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mla_ray.runtime.exit_codes import Exit
from mla_ray.runtime.progress import Stopped
from mla_ray.runtime.stop_signals import StopEvent


@contextmanager
def goes_on(run: str, stop: StopEvent) -> Iterator[None]:
    """Print how to resume a run that was stopped, and exit with the code of the signal.

    The training checks `stop` and saves a checkpoint. Before the training starts, a signal ends the
    run immediately.

    Args:
        run: Run folder, for the message.
        stop: Stop event of the training.

    """
    try:
        yield
    except (Stopped, KeyboardInterrupt) as fault:
        typer.echo(
            f"mla: stopped; progress is saved in {run}; run the same command again to continue",
            err=True,
        )
        code = Exit.INTERRUPTED if stop.received is None else Exit(128 + stop.received)
        raise typer.Exit(code) from fault
