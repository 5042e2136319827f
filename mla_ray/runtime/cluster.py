"""Ray, started for a command that needs it: RAY_ADDRESS's cluster, or a private local one."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

DASHBOARD = "RAY_API_SERVER_ADDRESS"
"""Ray's variable."""


def set_environment() -> None:
    """What Ray reads when it is imported; later it changes nothing."""
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
    import ray

    if ray.is_initialized():
        yield
        return
    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        port = free_port() if dashboard else None
        with _dashboard_in_environment(port):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=dashboard,
                dashboard_port=port,
                log_to_driver=False,
                logging_level="ERROR",
            )
    try:
        yield
    finally:
        ray.shutdown()


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
