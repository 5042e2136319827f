"""Log lines of a job on standard error: one format for all, and lines of progress."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from mla_ray.runtime.progress import Progress, Report

OURS = ("__main__", "jobs", "mla_ray")
"""Loggers that log from INFO up, as the job's own logger does. Others log from WARNING up."""


class _Lines(logging.Formatter):
    """Formatter of lines such as `2026-01-01T12:00:00Z INFO job=ID LOGGER message`.

    Every line of a traceback gets the same prefix.
    """

    def __init__(self, job: str, module: str) -> None:
        super().__init__()
        self.converter = time.gmtime
        self.job, self.module = job, module

    def format(self, record: logging.LogRecord) -> str:
        name = self.module if record.name == "__main__" else record.name
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ")
        head = f"{when} {record.levelname} job={self.job} {name} "
        return "\n".join(head + line for line in super().format(record).splitlines() or [""])


def log_to_stderr(job: str, module: str) -> None:
    """Send this process's log records and Python warnings to standard error, with the job's id.

    Args:
        job: The job's id.
        module: Name of the job's module. It replaces `__main__` as the logger's name.

    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(job, module))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in (*OURS, module):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


def progress_lines(
    write: Callable[[str], None],
    every_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Return a `Report` that writes lines such as `training 300/1150 26% ETA 0:12:30 loss 0.512`.

    It writes the first and the last report of each phase, and between them at most one every
    `every_s` seconds.

    Args:
        write: Receives each line.
        every_s: Seconds between two lines of a phase.
        clock: Returns the current time in seconds.

    """
    begun: dict[str, tuple[float, int]] = {}
    logged: dict[str, tuple[float, int]] = {}

    def report(step: Progress) -> None:
        now, new = clock(), step.phase not in begun
        since, start = begun.setdefault(step.phase, (now, step.done))
        last, done = logged.get(step.phase, (now, step.done))
        total = step.total
        ended = total is not None and step.done >= total and step.done != done
        if not (new or ended or now - last >= every_s):
            return
        logged[step.phase] = (now, step.done)
        words = [step.phase, str(step.done)]
        if total is not None:
            words[1] += f"/{total}"
            words.append(f"{100 * step.done // total if total else 100}%")
            if start < step.done < total:
                left = (now - since) * (total - step.done) / (step.done - start)
                words.append(f"ETA {timedelta(seconds=round(left))}")
        write(" ".join([*words, step.note] if step.note else words))

    return report
