"""Job runner: typed settings, log lines, exit codes and stop signals.

A job is a module with a settings class and a function. The command
`ray job submit --working-dir . -- mla job NAME --config FILE --steps 500` submits it to Ray's job
server. The part after `--` runs it without the job server:

    class Settings(JobSettings):
        out: Path
        nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)

    def main(settings: Settings, job: Job) -> object: ...

    if __name__ == "__main__":
        sys.exit(run(Settings, main))

A job prints its result as one JSON object, in the last line of standard output. Log lines go to
standard error, where Ray's C++ core writes, too. This module does not import torch. It imports Ray
only for a job that asks for it.
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
    """What the job's function receives besides its settings."""

    id: str
    """Submission id of `ray job submit`; without one `local-` and eight hex digits."""
    report: Report
    """Callback for progress. It logs at most one line per phase every 10 seconds, plus the first
    and the last."""
    stop: Event
    """Set when the job should end: save the state, then raise `Stopped`. Ray kills the job 3 s
    later, unless the cluster was started with RAY_JOB_STOP_WAIT_TIME_S. A second signal ends the
    job at once."""


@contextmanager
def _ray(stop: StopEvent) -> Iterator[None]:
    """Run Ray for the `with` block, with the signal handlers and the log format of the job."""
    try:
        with ray_session(dashboard=True):  # jobs.sweep needs the dashboard
            stop.listen()  # again, because `ray.init` installs a SIGTERM handler that exits with 15
            logger = logging.getLogger("ray")
            logger.handlers.clear()
            logger.propagate = True
            yield
    except SystemExit as left:
        # Code 15 is from that handler, while Ray was starting. Any other code is from Ray Train,
        # which handles SIGINT from `fit` on.
        by = signal.SIGTERM if left.code == signal.SIGTERM else signal.SIGINT
        stop.received = stop.received or by
        raise Stopped("Ray ended the job") from left


def run(
    settings_class: type[SettingsT],
    main: Callable[[SettingsT, Job], object],
    argv: Sequence[str] | None = None,
    *,
    ray: bool = False,
    name: str | None = None,
    prog: str | None = None,
) -> Exit:
    """Run a job: parse its settings, call `main` and print the result of `main` as JSON.

    Exceptions of the job are logged, not raised.

    Args:
        settings_class: The class of the job's settings.
        main: The job's function.
        argv: Flags; those of this process by default.
        ray: Run Ray around `main`: the cluster that the job was submitted to, else a private one.
        name: Name of the job's module, for the log. By default it is the module of `main`.
        prog: Name of the command in `--help`; `python -m MODULE` by default.

    Returns:
        The exit code.

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
    # After a signal the job's other processes end, too, which may raise any such error.
    if code is Exit.AGAIN and stop.received:
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
    """Return the message and notes of an exception; for a group also those of its members."""
    text = fault.args[0] if isinstance(fault, KeyError) and fault.args else str(fault)
    lines = [str(text) or type(fault).__name__, *getattr(fault, "__notes__", [])]
    if isinstance(fault, BaseExceptionGroup):
        return "\n".join([", ".join(lines), *map(_message, fault.exceptions)])
    return ", ".join(lines)


def _module(main: Callable[..., object]) -> str:
    """Return the name of the job's module, as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if main.__module__ == "__main__" and spec else main.__module__


def _job_id() -> str:
    """Return the submission id from the job configuration that Ray sets, or a local id."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submitted: str | None = (config.get("metadata") or {}).get("job_submission_id")
    return submitted or f"local-{uuid.uuid4().hex[:8]}"
