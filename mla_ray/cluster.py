"""Ray, started for a command that needs it: RAY_ADDRESS's cluster, or a private local one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
    they live, and would ask for ever.
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
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield
    finally:
        ray.shutdown()
