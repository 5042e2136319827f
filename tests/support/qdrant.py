"""A Qdrant server of a test's own, which it may kill and freeze."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mla_ray.runtime.cluster import free_port
from tests.support import ROOT

VARIABLE = "MLA_TEST_QDRANT_START"
"""Name of a program that starts a Qdrant server: `PROGRAM FOLDER HTTP_PORT GRPC_PORT [NAME=VALUE …]
[-- ARGUMENT …]`, with environment variables and arguments of Qdrant.

It returns when the server accepts requests, and writes the server's process id to `FOLDER/pid`. The
data is below FOLDER, so that the same call after a kill starts a server with the same points.
"""


class OwnQdrant:
    """A Qdrant server on loopback, with its data in a folder."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self._program = program
        self._folder = folder
        self._options = options
        self._ports = free_port(), free_port()
        self.urls = {
            "http": f"http://127.0.0.1:{self._ports[0]}",
            "grpc": f"grpc://127.0.0.1:{self._ports[1]}",
        }

    def start(self) -> None:
        """Start it, and wait until it accepts requests."""
        ports = [str(port) for port in self._ports]
        command = [self._program, str(self._folder), *ports, *self._options]
        subprocess.run(command, check=True, timeout=120)

    def kill(self) -> None:
        """Kill it if it lives, and wait until it has left."""
        with suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        for _ in range(1000):
            try:
                self._signal(0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        raise AssertionError("the Qdrant server lives on after SIGKILL")

    def freeze(self) -> None:
        """Stop it, so that it accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        os.kill(int((self._folder / "pid").read_text()), number)


@contextmanager
def own_qdrant(folder: Path, *arguments: str, **settings: str) -> Iterator[OwnQdrant]:
    """Start a Qdrant server by `MLA_TEST_QDRANT_START` or `../shared/qdrant/start`, or skip.

    Args:
        folder: Folder of its data.
        arguments: Arguments of Qdrant.
        settings: Qdrant's settings as environment variables.

    """
    beside = ROOT.parent / "shared" / "qdrant" / "start"
    program = os.environ.get(VARIABLE) or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip(f"{VARIABLE} is not set")
    options = [f"{name}={value}" for name, value in settings.items()]
    server = OwnQdrant(program, folder, *options, "--", *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()
