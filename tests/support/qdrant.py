"""Qdrant servers of a test's own: with keys, TLS or several nodes, to be killed and frozen."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mla_ray.runtime.cluster import free_port
from tests.support import ROOT

VARIABLE = "MLA_TEST_QDRANT_START"
"""Name of a program that starts a server: FOLDER HTTP_PORT GRPC_PORT [NAME=VALUE …] [-- ARGUMENTS].

It returns when the server accepts requests, and writes the server's process id to `FOLDER/pid`. The
data is below FOLDER, so that the same call after a kill starts a server with the same points.
"""


class Node:
    """A Qdrant server on loopback, with its data in a folder."""

    def __init__(
        self, program: str, folder: Path, arguments: Sequence[str], settings: dict[str, str]
    ) -> None:
        self.http, self.grpc = free_port(), free_port()
        self.urls = {
            "http": f"http://127.0.0.1:{self.http}",
            "grpc": f"grpc://127.0.0.1:{self.grpc}",
        }
        given = [f"{name}={value}" for name, value in settings.items()]
        ports = [str(self.http), str(self.grpc)]
        self._command = [program, str(folder), *ports, *given, "--", *arguments]
        self._folder = folder

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int((self._folder / "pid").read_text())

    def start(self) -> None:
        """Start it, and wait until it accepts requests."""
        subprocess.run(self._command, check=True, timeout=120)

    def kill(self) -> None:
        """Kill it, as a machine that loses its power, and wait until it has left."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        for _ in range(1000):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        raise AssertionError("the Qdrant server lives on after SIGKILL")

    def freeze(self) -> None:
        """Stop it, so that it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def qdrant(folder: Path, *arguments: str, **settings: str) -> Iterator[Node]:
    """Start a server by `MLA_TEST_QDRANT_START` or `../shared/qdrant/start`, or skip the test.

    Args:
        folder: Folder of its data.
        arguments: Arguments of Qdrant.
        settings: Qdrant's settings as environment variables.

    """
    beside = ROOT.parent / "shared" / "qdrant" / "start"
    program = os.environ.get(VARIABLE) or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip(f"{VARIABLE} is not set")
    node = Node(program, folder, arguments, settings)
    node.start()
    try:
        yield node
    finally:
        with suppress(ProcessLookupError):
            node.kill()
