"""What every job shares: typed settings, log lines, exit codes, and ending when asked to.

A job is a module with a settings class and a function, run by
`ray job submit --working-dir . -- mla job NAME --config FILE --steps 500`, or without Ray's
job server by the part after `--`:

    class Settings(JobSettings):
        out: Path
        nlt: Stage = Stage(steps=200, batch=256, lr=1e-3)

    def main(settings: Settings, job: Job) -> dict[str, Any]: ...

    if __name__ == "__main__":
        sys.exit(run(Settings, main))

A setting's value is the flag's, else the file's, else the default. Flags are named as keys are,
with dots: `--nlt.steps 5` leaves `nlt.batch` as it was. A list is a flag given again and again,
`a,b` or JSON; a dict is `--key a=1 --key b=2` or JSON, and is merged with the file's. A job's
result is one JSON object, the last line on standard output; all else is log lines on standard
error. (Ray's C++ core writes there, too.) Needs no torch and, until a job asks for it, no Ray.
"""

import argparse
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, NoReturn, TypeVar

import fsspec
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from pydantic_settings.sources import DefaultSettingsSource

from mla_ray.runtime.bundled import or_bundled
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.progress import Progress, Report, Stopped


class Exit(IntEnum):
    """What a job's exit code says."""

    DONE = 0
    INPUT = 1
    """The input is bad: running the job again changes nothing."""
    USAGE = 2
    """A flag or the file of settings is bad; nothing was begun."""
    BUG = 70
    """EX_SOFTWARE: a fault of the program, with its traceback."""
    AGAIN = 75
    """EX_TEMPFAIL: storage, network or nodes were away; the same job goes on where it stopped."""
    INTERRUPTED = 130
    """Ended by SIGINT; the same job goes on where it stopped."""
    TERMINATED = 143
    """Ended by SIGTERM, as by `ray job stop`; the same job goes on where it stopped."""


class Usage(ValueError):
    """Bad flags or a bad file of settings; a line for each fault."""


class JobSettings(BaseSettings):
    """Settings of a job: derive, and annotate fields; their docstrings are what `--help` prints.

    A nested model has an instance as its default, so that a part of it can be set.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        case_sensitive=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: a variable of the environment that is named as a key is not read."""
        return (init_settings,)


Settings = TypeVar("Settings", bound=JobSettings)


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


# Settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message)

    @property
    def keys(self) -> list[str]:
        return [flag.removeprefix("--") for flag in self._option_string_actions]


def load(settings_class: type[Settings], argv: Sequence[str], prog: str | None = None) -> Settings:
    """Settings from flags, the file they name with `--config`, and defaults, in this order.

    Raises:
        Usage: a key is unknown, missing or of the wrong type, or the file cannot be read.

    """
    parser = _Parser(
        prog=prog,
        description=settings_class.__doc__,
        epilog="Lists: the flag repeated, a,b or JSON. Dicts: --key a=1 --key b=2 or JSON.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of these keys, a path or a URL; flags override it"
    )
    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            settings_class,
            root_parser=parser,
            cli_avoid_json=True,  # in the help
            cli_parse_none_str="null",
            cli_implicit_flags=True,
        )
        given, unknown = parser.parse_known_args(argv)
        if unknown:
            raise Usage(_unknown_flag(unknown[0], parser.keys))
        path = vars(given).pop("config")
        flags(parsed_args=given)
        file = _read(path) if path else {}
        sources = (
            flags,
            InitSettingsSource(settings_class, file),
            DefaultSettingsSource(settings_class),
        )
        return settings_class(**{"_build_sources": (sources, {})})
    except SettingsError as error:
        raise Usage(str(error)) from error
    except ValidationError as error:
        faults = dict.fromkeys(_fault(e, flags(), file, path, parser.keys) for e in error.errors())
        raise Usage("\n".join(faults)) from error


def _read(path: str) -> dict[str, Any]:
    try:
        found = path if "://" in path else str(or_bundled(Path(path)))
        with fsspec.open(found, "rt", encoding="utf-8") as text:
            settings = yaml.safe_load(text) or {}
    except (OSError, ValueError, ImportError, yaml.YAMLError) as error:
        if exit_code(error) is Exit.AGAIN:
            raise
        raise Usage(f"--config {path}: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise Usage(f"--config {path}: not a mapping of keys to values")
    return settings


def _unknown_flag(argument: str, keys: list[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    flag = argument.split("=")[0]
    return f"unknown flag {flag}{_near(flag.lstrip('-'), keys, '--')}"


def _near(key: str, keys: list[str], dashes: str = "") -> str:
    near = get_close_matches(key, keys, n=1)
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def _fault(
    error: ErrorDetails,
    flags: Mapping[str, Any],
    file: Mapping[str, Any],
    path: str | None,
    keys: list[str],
) -> str:
    """One of pydantic's errors, with the flag or the file and key that it is about."""
    at = error["loc"]
    in_flags, in_file = _depth(flags, at), _depth(file, at)
    if error["type"] == "missing":
        return f"--{_dotted(at)}: missing; give the flag, or the key in the file of --config"
    # Beyond what was given are pydantic's names for the members of a union.
    key = _dotted(at[: max(in_flags, in_file)] or at)
    if in_flags >= in_file:
        where, dashes = f"--{key}", "--"
    else:
        where, dashes = f"{path}: {key}", ""
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_near(key, keys, dashes)}"
    return f"{where}: {error['msg']}, found {error['input']!r:.60}"


def _dotted(at: Sequence[int | str]) -> str:
    return ".".join(map(str, at))


def _depth(value: Any, at: Sequence[int | str]) -> int:
    """How many steps along `at` there are in `value`."""
    for depth, step in enumerate(at):
        try:
            value = value[step]
        except (LookupError, TypeError):
            return depth
    return len(at)


# Log lines

OURS = ("__main__", "jobs", "mla_ray")
"""Loggers heard from INFO up, and the job's own; others from WARNING up."""


class _Lines(logging.Formatter):
    """`2026-01-01T12:00:00Z INFO job=ID LOGGER message`, and so before each line of a traceback."""

    def __init__(self, job: str, module: str) -> None:
        super().__init__()
        self.converter = time.gmtime
        self.job, self.module = job, module

    def format(self, record: logging.LogRecord) -> str:
        name = self.module if record.name == "__main__" else record.name
        at = self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ")
        head = f"{at} {record.levelname} job={self.job} {name} "
        return "\n".join(head + line for line in super().format(record).splitlines() or [""])


def _log_to_stderr(job: str, module: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(job, module))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in (*OURS, module):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


def logged(
    every_s: float = 10.0,
    log: logging.Logger | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """A `Report` that logs a phase's first and last figure, and between them one every `every_s`.

    `training 300/1150 26% ETA 0:12:30 loss 0.512`
    """
    log = log or logging.getLogger(__name__)
    begun: dict[str, tuple[float, int]] = {}
    said: dict[str, tuple[float, int]] = {}

    def report(step: Progress) -> None:
        now, new = clock(), step.phase not in begun
        since, start = begun.setdefault(step.phase, (now, step.done))
        at, done = said.get(step.phase, (now, step.done))
        total = step.total
        ended = total is not None and step.done >= total and step.done != done
        if not (new or ended or now - at >= every_s):
            return
        said[step.phase] = (now, step.done)
        words = [step.phase, str(step.done)]
        if total is not None:
            words[1] += f"/{total}"
            words.append(f"{100 * step.done // total if total else 100}%")
            if start < step.done < total:
                left = (now - since) * (total - step.done) / (step.done - start)
                words.append(f"ETA {timedelta(seconds=round(left))}")
        log.info(" ".join([*words, step.note] if step.note else words))

    return report


# The end of a job

PASSING_ERRNOS = {
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE),  # storage
    *(errno.EBUSY, errno.EAGAIN, errno.ENOLCK),
    *(errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    socket.EAI_AGAIN,
}
PASSING = {  # by name: an exception of a library that was not imported need not be looked for
    "ray.exceptions.RayError",
    "ray.train.TrainingFailedError",  # after its own retries
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
}


def exit_code(fault: BaseException) -> Exit:
    """What an exception that ends a job says about running it again."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(fault).__mro__}
    if "ray.exceptions.RayTaskError" in names:  # also of the kind that was raised in the task
        return exit_code(fault.cause)  # type: ignore[attr-defined]
    if "ray.exceptions.UserCodeException" in names:  # Ray Data's, around a function's exception
        return exit_code(fault.__cause__) if fault.__cause__ else Exit.BUG
    if isinstance(fault, BaseExceptionGroup):  # running again helps if it helps all
        codes = {exit_code(one) for one in fault.exceptions}
        return codes.pop() if len(codes) == 1 else Exit.BUG if Exit.BUG in codes else Exit.INPUT
    if isinstance(fault, Usage):
        return Exit.USAGE
    if isinstance(fault, (ConnectionError, TimeoutError, Stopped)) or names & PASSING:
        return Exit.AGAIN
    if isinstance(fault, OSError):
        return Exit.AGAIN if fault.errno in PASSING_ERRNOS else Exit.INPUT
    if isinstance(fault, (ValueError, LookupError, MemoryError)):
        return Exit.INPUT
    return Exit.INTERRUPTED if isinstance(fault, KeyboardInterrupt) else Exit.BUG


class _Stop(Event):
    """Set by SIGTERM and SIGINT."""

    heard: signal.Signals | None = None

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._hear)
        signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = signal.Signals(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.set()  # logging is not safe here


@contextmanager
def stopping() -> Iterator[_Stop]:
    """An event that the first SIGTERM or SIGINT sets; a second has its usual effect."""
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ray(stop: _Stop) -> Iterator[None]:
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
        stop.heard = stop.heard or by
        raise Stopped("Ray ended it") from left


def run(
    settings_class: type[Settings],
    main: Callable[[Settings, Job], dict[str, Any]],
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
    _log_to_stderr(job_id, name)
    log = logging.getLogger(name)
    with stopping() as stop:
        try:
            arguments = sys.argv[1:] if argv is None else argv
            settings = load(settings_class, arguments, prog or f"python -m {name}")
            log.info("settings %s", settings.model_dump_json())
            with _ray(stop) if ray else nullcontext():
                result = main(settings, Job(job_id, logged(log=log), stop))
        except (Exception, KeyboardInterrupt) as fault:
            return _ended(fault, stop, log)
    log.info("done")
    print(to_json(result, inf_nan_mode="null", fallback=str).decode(), flush=True)
    return Exit.DONE


def _ended(fault: BaseException, stop: _Stop, log: logging.Logger) -> Exit:
    code = exit_code(fault)
    if code is Exit.AGAIN and stop.heard:  # also what breaks because its own processes ended
        code = Exit(128 + stop.heard)
    said = _said(fault)
    match code:
        case Exit.BUG:
            log.error("a bug", exc_info=fault)
        case Exit.AGAIN:
            log.error("%s; running the job again goes on where it stopped", said)
        case Exit.INTERRUPTED | Exit.TERMINATED:
            log.warning("ended by %s: %s", signal.Signals(code - 128).name, said)
        case _:
            log.error("%s", said)
    return code


def _said(fault: BaseException) -> str:
    """Its message and notes, and below a group's those of its members."""
    said = fault.args[0] if isinstance(fault, KeyError) and fault.args else str(fault)
    lines = [str(said) or type(fault).__name__, *getattr(fault, "__notes__", [])]
    if isinstance(fault, BaseExceptionGroup):
        return "\n".join([", ".join(lines), *map(_said, fault.exceptions)])
    return ", ".join(lines)


def _module(main: Callable[..., Any]) -> str:
    """The job's module as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if main.__module__ == "__main__" and spec else main.__module__


def _job_id() -> str:
    """The submission id, which Ray's job supervisor hands on in the job's configuration."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submitted: str | None = (config.get("metadata") or {}).get("job_submission_id")
    return submitted or f"local-{uuid.uuid4().hex[:8]}"
