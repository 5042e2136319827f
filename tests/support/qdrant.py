"""Qdrant servers with settings of their own: keys, TLS, several nodes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mla_ray.runtime.cluster import free_port

START = Path(os.environ.get("MLA_TEST_QDRANT_START", "/work/shared/qdrant/start"))
"""Program that starts a server: FOLDER HTTP_PORT GRPC_PORT [NAME=VALUE …] [-- ARGUMENTS].

It returns when the server answers, and leaves its process id in FOLDER/pid.
"""


@dataclass(frozen=True)
class Node:
    """A server that runs."""

    http: int  # ports
    grpc: int
    pid: int

    def kill(self) -> None:
        """End the server at once, as a machine does that loses its power."""
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def qdrant(folder: Path, *arguments: str, **settings: str) -> Iterator[Node]:
    """Start a server, and end it after the `with` block; skip the test if it cannot be started.

    Args:
        folder: Folder of its data.
        arguments: Arguments of Qdrant.
        settings: Qdrant's settings as environment variables.

    """
    if not START.exists():
        pytest.skip(f"{START} does not exist; set MLA_TEST_QDRANT_START")
    http, grpc = free_port(), free_port()
    given = [f"{name}={value}" for name, value in settings.items()]
    subprocess.run([START, folder, str(http), str(grpc), *given, "--", *arguments], check=True)
    node = Node(http, grpc, int((folder / "pid").read_text()))
    try:
        yield node
    finally:
        with suppress(ProcessLookupError):
            node.kill()
