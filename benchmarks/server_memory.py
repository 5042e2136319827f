"""Measure the memory of every process of `mla serve`.

    python benchmarks/server_memory.py [--packs FOLDER] [--index edge:FOLDER] [--json memory.json]

The server runs with emoji-clip. Without options it has no pack and a new index. It is measured when
it answers, after a search in each language. PSS divides shared pages among their processes, so it
can be added up. Private pages belong to one process.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.table import Table

from mla_ray.runtime.cluster import free_port
from mla_ray.runtime.console import stdout

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

START_S, STOP_S = 600, 60
SERVICES = {
    "gcs_server": "Ray: gcs_server",
    "raylet": "Ray: raylet",
    "dashboard/dashboard.py": "Ray: dashboard",
    "dashboard/agent.py": "Ray: agents",
    "runtime_env/agent": "Ray: agents",
    "log_monitor": "Ray: log monitor",
    "autoscaler": "Ray: autoscaler",
    "haproxy": "HAProxy",
}
"""Roles of processes by a part of their command line."""


def role(command: list[str]) -> str:
    """Return the role of a process. Ray writes the role of a worker into its command line."""
    title = " ".join(command)
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split()[0].rpartition(":")[2].partition(".")[0]
    return next((name for part, name in SERVICES.items() if part in title), "other")


def sizes(process: psutil.Process) -> dict[str, float]:
    """Return PSS and private memory of a process in MB."""
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        kilobytes[name.rstrip(":")] = int(value)
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"pss": kilobytes["Pss"] * 1024 / 1e6, "private": private * 1024 / 1e6}


def processes(root: psutil.Process) -> Figures:
    """Return the number and the memory of the processes of a server by role."""
    found: Figures = defaultdict(lambda: {"number": 0, "pss": 0.0, "private": 0.0})
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error, OSError):  # the process has ended
            who = "mla serve" if process.pid == root.pid else role(process.cmdline())
            found[who]["number"] += 1
            for what, size in sizes(process).items():
                found[who][what] += size
    return dict(sorted(found.items(), key=lambda item: -item[1]["pss"]))


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        SystemExit: The server ended, or does not answer in time.

    """
    for _ in range(START_S):
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{url}/healthz", timeout=5).status_code == 200:
                return
        if server.poll() is not None:
            raise SystemExit(f"mla serve ended with {server.returncode}")
        time.sleep(1)
    raise SystemExit(f"mla serve does not answer at {url} after {START_S} s")


def measure(packs: Path, index: str) -> Figures:
    """Start a server, search in each language, and return its processes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mla_ray", "serve", "--no-open", "--json"]
    command += ["--packs", str(packs), "--index", index, "--port", str(port)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ) as server:
        try:
            wait(url, server)
            seconds = time.perf_counter() - began
            listed = httpx2.get(f"{url}/v1/languages", timeout=60).json()["languages"]
            for language in (each["language"] for each in listed):
                asked = {"q": "dog", "language": language}
                httpx2.get(f"{url}/v1/search", params=asked, timeout=60).raise_for_status()
            found = processes(psutil.Process(server.pid))
        finally:
            server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(STOP_S)
            server.kill()
    return {"seconds": seconds, "languages": len(listed), "processes": found}


def table(figures: Figures) -> list[list[str]]:
    """Return the rows of the table of the figures, the head first."""
    head = ["", "processes", "PSS, MB", "private, MB"]
    found = figures["processes"]
    total = {what: sum(each[what] for each in found.values()) for what in ("number", "pss")}
    rows = [
        [who, str(each["number"]), f"{each['pss']:,.0f}", f"{each['private']:,.0f}"]
        for who, each in found.items()
    ]
    return [head, *rows, ["all", str(total["number"]), f"{total['pss']:,.0f}", ""]]


def main() -> None:
    """Parse the options, measure a server and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=Path, help="pack store (default: an empty folder)")
    parser.add_argument("--index", help="index (default: a new folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mla-memory-") as scratch:
        folder = Path(scratch)
        figures = measure(args.packs or folder, args.index or f"edge:{folder / 'index'}")
    head, *rows = table(figures)
    shown = Table(*head, title=f"answered after {figures['seconds']:.0f} s")
    for row in rows:
        shown.add_row(*row)
    stdout.print(shown)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
