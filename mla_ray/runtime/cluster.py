"""Ray, started for a command that needs it: RAY_ADDRESS's cluster, or a private local one."""

import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

DASHBOARD = "RAY_API_SERVER_ADDRESS"
"""Ray's variable."""
VERBOSE = "MLA_VERBOSE"
"""Ours: let Ray's own lines through, for whoever looks for a fault in it."""
QUIET_LOGGERS = ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune")
ANSWER_WITHIN_S = 10
"""How long a cluster is waited for; Ray itself would wait for two minutes without a word."""
LONGEST_FOLDER = 24
"""Bytes of a folder for temporary ones: an AF_UNIX path has at most 107, of which Ray needs 82."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108


def set_environment() -> None:
    """What Ray reads when it is imported; later it changes nothing."""
    _reach_cluster_directly()
    if not os.environ.get("RAY_ADDRESS"):
        # Every socket on 127.0.0.1, where the nodes of a cluster could not reach it.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # How often Train's controller looks at its workers: 2 s by default, and every report waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Its C++ core warns of what Ray Data does with its own actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def ray_session(cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """Ray for the body of a `with`; one that already runs in this process is left as it is.

    A private Ray listens on loopback only and is stopped at the end. It needs the dashboard's
    server where Ray Tune stops trials of Ray Train: what gives their cores back asks that whether
    they live, and would ask for ever. Its processes are told where it listens; they would look for
    it, and with a second Ray on the machine not know which they found.
    """
    address = os.environ.get("RAY_ADDRESS")
    set_environment()
    if address:
        check_answers(address)
    import ray

    if ray.is_initialized():
        yield
        return
    verbose = bool(os.environ.get(VERBOSE))
    lines: RayLines = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address:
        with _quiet(verbose):
            ray.init(address=address, **lines)
        try:
            yield
        finally:
            ray.shutdown()
        return
    port = free_port() if dashboard else None
    with temporary_folder("mla-ray-") as scratch:
        try:
            with _dashboard_in_environment(port), _quiet(verbose):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=dashboard,
                    dashboard_port=port,
                    _temp_dir=str(scratch),
                    **lines,
                )
            yield
        finally:
            ray.shutdown()


class RayLines(TypedDict):
    """Which of Ray's own lines `ray.init` lets through."""

    log_to_driver: bool
    logging_level: int


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Ray starts without a word; if it fails, what it said is printed.

    Its C++ core writes to file descriptor 2, past Python, and its libraries set loggers of their
    own to INFO when they are imported.
    """
    if verbose:
        yield
        return
    for name in QUIET_LOGGERS:
        logging.getLogger(name).addFilter(_errors_alone)
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(before, said.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _errors_alone(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def temporary_folder(prefix: str, longest: int = LONGEST_FOLDER) -> Iterator[Path]:
    """A folder for the body of a `with`, whose path is short enough for sockets in it.

    It is in TMPDIR if that has at most `longest` bytes, else in one of `SHORT_FOLDERS`.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_short_folder(longest)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder(longest: int) -> str:
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for folder in (usual, *SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= longest and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(
        f"{usual} is too long for sockets in it, and none of {', '.join(SHORT_FOLDERS)} may be "
        f"written to; set TMPDIR to a folder of at most {longest} bytes"
    )


def check_answers(address: str) -> None:
    """ConnectionError if nothing takes connections at an address of Ray's in `ANSWER_WITHIN_S`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or (parts.port is None and parts.scheme != "ray"):
        return  # "auto", "local": Ray knows
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((parts.hostname, parts.port or 10001), max(left, 0.1)):
                return
        except OSError as error:
            if left < 1:
                raise ConnectionError(
                    f"no Ray answers at {address}, which RAY_ADDRESS names ({error}); start it, "
                    "or unset RAY_ADDRESS to run on this machine"
                ) from error
        time.sleep(0.5)


def _reach_cluster_directly() -> None:
    """No proxy of the environment stands between the processes of a cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    own = ["localhost", "127.0.0.1", "::1", *([host] if host else []), *_own_addresses(host)]
    for name in ("no_proxy", "NO_PROXY"):
        before = [each for each in os.environ.get(name, "").split(",") if each]
        if before != ["*"]:
            os.environ[name] = ",".join(dict.fromkeys([*before, *own]))


def _own_addresses(host: str | None) -> list[str]:
    """Addresses of this machine by which the others of a cluster at `host` know it."""
    if not host:
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect((host, 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


@contextmanager
def _dashboard_in_environment(port: int | None) -> Iterator[None]:
    """Processes that are started here know the dashboard's port; this one and others do not."""
    before = os.environ.get(DASHBOARD)
    if port is not None:
        os.environ[DASHBOARD] = f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DASHBOARD, None)
        else:
            os.environ[DASHBOARD] = before


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
