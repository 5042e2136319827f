"""Measure what clients of `mla serve` get while the Qdrant server of its index is away.

    python benchmarks/away.py --start PROGRAM [--connections 32] [--json]

PROGRAM starts a Qdrant server: `PROGRAM FOLDER HTTP_PORT GRPC_PORT`. It returns when the server
accepts requests, and writes the process id to `FOLDER/pid`. The benchmark starts one, writes 2,000
random vectors to it, and starts `mla serve` over it. Each connection sends one search after
another, and waits 0.1 s after a 503 (its `Retry-After` asks for more). Meanwhile the server is
killed and started again, then frozen (SIGSTOP) and continued.

For each fault the benchmark prints:

- answers by status, from the fault until the server was back at full speed;
- milliseconds of the 503 of requests that were sent after the first 503, so when the absence was
  known: median, 99th percentile and largest;
- seconds from the return (Qdrant accepts connections, or SIGCONT) to the first hits, and to full
  speed: the first half second with at least 0.9 of the answers before the fault.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np

from mla_ray.index.collection import CaptionIndex
from mla_ray.index.encoders import Encoders
from mla_ray.index.entry import Entry
from mla_ray.runtime.cluster import free_port

POINTS = 2000
STEADY_S, AWAY_S, BACK_S = 10, 15, 10
PAUSE_S = 0.1
START_S = 400
WINDOW_S = 0.5
FULL = 0.9
QUERY = {"q": "a red umbrella", "language": "en", "find": "captions", "k": "5"}


class Answer(NamedTuple):
    """One answer of `mla serve`."""

    sent: float  # seconds of the monotonic clock
    came: float
    status: str  # HTTP status, or the name of a client's error


class Qdrant:
    """A Qdrant server in a folder of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self._command = [program, str(folder), str(self.port), str(free_port())]
        self.start()

    def start(self) -> None:
        """Start the server and wait until it accepts requests."""
        subprocess.run(self._command, check=True)

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        os.kill(int((self._folder / "pid").read_text()), number)


def main() -> None:
    """Start both servers, strike twice under load, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", required=True, metavar="PROGRAM")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        qdrant = Qdrant(arguments.start, Path(scratch) / "qdrant")
        try:
            url = f"http://127.0.0.1:{qdrant.port}"
            fill(url)
            with serving(url, Path(scratch)) as served:
                figures = asyncio.run(measure(served, qdrant, arguments.connections))
        finally:
            qdrant.signal(signal.SIGCONT)
            qdrant.signal(signal.SIGTERM)
    print(json.dumps(figures, indent=None if arguments.json else 1))


def fill(url: str) -> None:
    """Write captions with random vectors of the native's size."""
    space = Encoders("emoji-clip", {}).space
    vectors = np.random.default_rng(0).standard_normal((POINTS, space.dim)).astype(np.float32)
    entries = [Entry(f"c{n}", f"i{n}", "en", f"caption {n}", "away") for n in range(POINTS)]
    with CaptionIndex.open(url, space) as index:
        index.upsert(entries, vectors)


@contextmanager
def serving(index: str, scratch: Path) -> Iterator[str]:
    """Run `mla serve` over an index without packs, and yield its URL when it is healthy."""
    (scratch / "packs").mkdir()
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mla_ray", "serve", "--no-open", "--json"]
    command += ["--packs", str(scratch / "packs"), "--index", index, "--port", str(port)]
    with (
        (scratch / "serve.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"mla serve:\n{(scratch / 'serve.log').read_text()[-2000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def is_healthy(url: str) -> bool:
    """Return whether a server answers and all of its parts do."""
    try:
        return httpx2.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


async def measure(url: str, qdrant: Qdrant, connections: int) -> dict[str, Any]:
    """Search over all connections while the server is killed and frozen. Return the figures."""
    answers: list[Answer] = []
    ending = asyncio.Event()
    searches = [asyncio.create_task(search(url, answers, ending)) for _ in range(connections)]
    figures: dict[str, Any] = {}
    faults: dict[str, tuple[int, Callable[[], None]]] = {
        "killed": (signal.SIGKILL, qdrant.start),
        "frozen": (signal.SIGSTOP, lambda: qdrant.signal(signal.SIGCONT)),
    }
    for name, (number, come_back) in faults.items():
        await asyncio.sleep(STEADY_S)
        struck = time.monotonic()
        qdrant.signal(number)
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(come_back)
        back = time.monotonic()
        await asyncio.sleep(BACK_S)
        figures[name] = judged(answers, struck, back)
    ending.set()
    await asyncio.gather(*searches)
    figures["answers"] = dict(Counter(answer.status for answer in answers))
    return figures


async def search(url: str, answers: list[Answer], ending: asyncio.Event) -> None:
    """Send one search after another over one connection."""
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while not ending.is_set():
            sent = time.monotonic()
            try:
                status = str((await client.get("/v1/search", params=QUERY)).status_code)
            except httpx2.HTTPError as error:
                status = type(error).__name__
            answers.append(Answer(sent, time.monotonic(), status))
            if status != "200":
                await asyncio.sleep(PAUSE_S)


def judged(answers: list[Answer], struck: float, back: float) -> dict[str, Any]:
    """Return the figures of one fault. `struck` and `back` are its start and its end."""
    during = [answer for answer in answers if answer.came > struck]
    refusals = [answer for answer in during if answer.status == "503"]
    known = min((answer.came for answer in refusals), default=struck)
    ms = [1000 * (answer.came - answer.sent) for answer in refusals if answer.sent > known]
    hits = [answer.came for answer in answers if answer.status == "200"]
    usual = sum(struck - STEADY_S / 2 < came <= struck for came in hits) / (STEADY_S / 2)
    starts = np.arange(back, back + BACK_S - WINDOW_S, 0.1)
    rates = [sum(s <= came < s + WINDOW_S for came in hits) / WINDOW_S for s in starts]
    full = next((s for s, rate in zip(starts, rates, strict=True) if rate >= FULL * usual), None)
    first = min((came for came in hits if came > back), default=None)
    return {
        "answers": dict(Counter(answer.status for answer in during)),
        "searches/s before": round(usual),
        "known after, s": round(known - struck, 2),
        "503, ms": [round(float(np.percentile(ms, share)), 1) for share in (50, 99, 100) if ms],
        "first hits after, s": None if first is None else round(first - back, 2),
        "full speed after, s": None if full is None else round(float(full) - back, 2),
        "slowest, s": round(max(answer.came - answer.sent for answer in during), 2),
    }


if __name__ == "__main__":
    main()
