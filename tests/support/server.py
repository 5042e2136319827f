"""`mla serve` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mla_ray.runtime.cluster import free_port
from tests.support import ROOT


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def serving(*flags: str, folder: Path = ROOT, **environment: str) -> Iterator[Served]:
    """`mla serve` in a folder and on a free port, for the body of a `with`."""
    command = [str(Path(sys.executable).parent / "mla"), "serve", "--json", "--no-open"]
    with subprocess.Popen(
        [*command, "--port", str(free_port()), *flags],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | environment,
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, f"mla serve ended with {process.wait()}"
            yield Served(json.loads(line)["url"], process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
