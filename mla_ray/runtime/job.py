"""What every job shares: typed settings, log lines, exit codes, and ending when asked to.

A job is a module with a settings class and a function, run by
`ray job submit --working-dir . -- mla job NAME --config FILE --steps 500`, or without Ray's
job server by the part after `--`:

    class Settings(JobSettings):
        out: Path
        nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)

    def main(settings: Settings, job: Job) -> object: ...

    if __name__ == "__main__":
        sys.exit(run(Settings, main))

A job's result is one JSON object, the last line on standard output; all else is log lines on
standard error. (Ray's C++ core writes there, too.) Needs no torch and, until a job asks for it, no
Ray.
"""

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event

from pydantic_core import to_json

from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.exit_codes import Exit, exit_code
from mla_ray.runtime.job_log import log_to_stderr, progress_lines
from mla_ray.runtime.job_settings import SettingsT, load
from mla_ray.runtime.progress import Report, Stopped
from mla_ray.runtime.stop_signals import StopEvent, stop_on_signals


@dataclass(frozen=True)
class Job:
    """What a job is handed besides its settings."""

    id: str
    """Of `ray job submit`; else `local-` and eight hex digits."""
    report: Report
    """Told of progress, logs some of it."""
    stop: Event
    """Set when the job is to end: save, then raise `Stopped`. Ray kills it 3 s later, unless the
    cluster was started with RAY_JOB_STOP_WAIT_TIME_S. A second signal ends it at once."""


@contextmanager
def _ray(stop: StopEvent) -> Iterator[None]:
    """Ray, and signals and log lines as they were before it came."""
    try:
        with ray_session(dashboard=True):  # for jobs.sweep
            stop.listen()  # again: `ray.init` has put a handler of SIGTERM that exits with 15
            logger = logging.getLogger("ray")
            logger.handlers.clear()
            logger.propagate = True
            yield
    except SystemExit as left:
        # By that handler while Ray was starting; else by Train's, which has SIGINT from `fit` on.
        by = signal.SIGTERM if left.code == signal.SIGTERM else signal.SIGINT
        stop.received = stop.received or by
        raise Stopped("Ray ended it") from left


def run(
    settings_class: type[SettingsT],
    main: Callable[[SettingsT, Job], object],
    argv: Sequence[str] | None = None,
    *,
    ray: bool = False,
    name: str | None = None,
    prog: str | None = None,
) -> Exit:
    """Do a job: read its settings, call `main`, print what it returns; returns the exit code.

    `name` is the job's module, if `main` is of another; `prog` what `--help` says it is called,
    `python -m` and its module if not given. With `ray`, Ray runs around `main`: the
    cluster the job was submitted to, else a private one.
    """
    name, job_id = name or _module(main), _job_id()
    log_to_stderr(job_id, name)
    log = logging.getLogger(name)
    with stop_on_signals() as stop:
        try:
            arguments = sys.argv[1:] if argv is None else argv
            settings = load(settings_class, arguments, prog or f"python -m {name}")
            log.info("settings %s", settings.model_dump_json())
            with _ray(stop) if ray else nullcontext():
                result = main(settings, Job(job_id, progress_lines(log.info), stop))
        except (Exception, KeyboardInterrupt) as fault:
            return _end(fault, stop, log)
    log.info("done")
    print(to_json(result, inf_nan_mode="null", fallback=str).decode(), flush=True)
    return Exit.DONE


def _end(fault: BaseException, stop: StopEvent, log: logging.Logger) -> Exit:
    code = exit_code(fault)
    if code is Exit.AGAIN and stop.received:  # also what breaks because its own processes ended
        code = Exit(128 + stop.received)
    message = _message(fault)
    match code:
        case Exit.BUG:
            log.error("a bug", exc_info=fault)
        case Exit.AGAIN:
            log.error("%s; running the job again goes on where it stopped", message)
        case Exit.INTERRUPTED | Exit.TERMINATED:
            log.warning("ended by %s: %s", signal.Signals(code - 128).name, message)
        case _:
            log.error("%s", message)
    return code


def _message(fault: BaseException) -> str:
    """Its message and notes, and below a group's those of its members."""
    text = fault.args[0] if isinstance(fault, KeyError) and fault.args else str(fault)
    lines = [str(text) or type(fault).__name__, *getattr(fault, "__notes__", [])]
    if isinstance(fault, BaseExceptionGroup):
        return "\n".join([", ".join(lines), *map(_message, fault.exceptions)])
    return ", ".join(lines)


def _module(main: Callable[..., object]) -> str:
    """The job's module as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if main.__module__ == "__main__" and spec else main.__module__


def _job_id() -> str:
    """The submission id, which Ray's job supervisor hands on in the job's configuration."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submitted: str | None = (config.get("metadata") or {}).get("job_submission_id")
    return submitted or f"local-{uuid.uuid4().hex[:8]}"
