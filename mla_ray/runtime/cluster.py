"""Ray for the commands that need it: the cluster at RAY_ADDRESS, or a private local Ray."""

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
"""Environment variable of Ray: the address of the dashboard's server."""
VERBOSE = "MLA_VERBOSE"
"""Environment variable of mla-ray: if set, Ray's own log lines are shown, for debugging."""
QUIET_LOGGERS = ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune")
ANSWER_WITHIN_S = 10
"""Seconds to wait for a cluster to answer. Ray itself waits two minutes and logs nothing."""
LONGEST_FOLDER = 24
"""Most bytes in the path of the folder that holds Ray's temporary folder.

An AF_UNIX path has at most 107 bytes, of which Ray needs 82.
"""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108


def set_environment() -> None:
    """Set the environment variables that Ray reads when it is imported.

    Setting them after the import has no effect.
    """
    _reach_cluster_directly()
    if not os.environ.get("RAY_ADDRESS"):
        # Bind every socket to 127.0.0.1. Not for a cluster: its other nodes could not connect.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Train's controller polls its workers at this interval (2 s by default). Every report waits
    # for the next poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray's C++ core warns about the way Ray Data uses its own actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def ray_session(
    cpus: int | None = None, *, dashboard: bool = False, metrics_port: int | None = None
) -> Iterator[None]:
    """Run Ray for the `with` block: the cluster at RAY_ADDRESS, or a private local Ray.

    If Ray already runs in this process, it is left as it is. A private Ray listens on loopback
    only and is stopped at the end.

    Args:
        cpus: Cores of a private Ray. By default Ray detects them.
        dashboard: Start the dashboard's server with a private Ray. A sweep needs it, because Ray
            Tune stops trials of Ray Train. Ray Train asks the dashboard's server whether a stopped
            trial is alive before it frees its cores. Without the server it waits forever. Ray's
            processes get the server's address from the environment. If they search for it, they
            may find another Ray on the same machine.
        metrics_port: Port of the Prometheus metrics of a private Ray. By default Ray takes a free
            one.

    Raises:
        ConnectionError: Nothing answers at RAY_ADDRESS.

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
                    _metrics_export_port=metrics_port,
                    **lines,
                )
            yield
        finally:
            ray.shutdown()


class RayLines(TypedDict):
    """Arguments of `ray.init` that select which of Ray's own log lines are shown."""

    log_to_driver: bool
    logging_level: int


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Hide what Ray prints while it starts; print it if the start fails.

    Ray's C++ core writes to file descriptor 2 directly. Ray's libraries set their own loggers to
    INFO when they are imported.
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
    """Yield a temporary folder whose path is short enough for sockets; delete it afterwards.

    The folder is created in RAY_TMPDIR, or in TMPDIR if RAY_TMPDIR is not set. If that path has
    more than `longest` bytes or is not writable, the folder is created in one of `SHORT_FOLDERS`.

    Raises:
        OSError: None of these folders is short enough and writable.

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
        f"{usual} is too long for the path of a socket, and none of {', '.join(SHORT_FOLDERS)} is "
        f"writable; set TMPDIR to a folder of at most {longest} bytes"
    )


def check_answers(address: str) -> None:
    """Check that a Ray address accepts connections within `ANSWER_WITHIN_S` seconds.

    Checks only addresses with a host and a port, and `ray://` addresses (default port 10001).

    Raises:
        ConnectionError: Nothing accepts connections at `address`.

    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or (parts.port is None and parts.scheme != "ray"):
        return  # "auto" and "local": Ray resolves them
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
    """Add the cluster's addresses to NO_PROXY, so that its processes do not use a proxy."""
    address = os.environ.get("RAY_ADDRESS", "")
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    own = ["localhost", "127.0.0.1", "::1", *([host] if host else []), *_own_addresses(host)]
    for name in ("no_proxy", "NO_PROXY"):
        before = [each for each in os.environ.get(name, "").split(",") if each]
        if before != ["*"]:
            os.environ[name] = ",".join(dict.fromkeys([*before, *own]))


def _own_addresses(host: str | None) -> list[str]:
    """Return the address of this machine as the cluster at `host` sees it, or an empty list."""
    if not host:
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # UDP connect sends nothing
        try:
            probe.connect((host, 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


@contextmanager
def _dashboard_in_environment(port: int | None) -> Iterator[None]:
    """Set the dashboard's address in the environment for processes that the `with` block starts."""
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
    """Return a loopback port that no process listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
