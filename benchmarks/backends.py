"""Compare searches per second of `mla serve` over a Qdrant server with those over a folder.

    python -m benchmarks.backends URL ... [--seconds 8] [--rounds 3] [--run runs/demo] [--json FILE]

Each URL is a Qdrant server, over HTTP or gRPC. The demo's index is copied there, under the prefix
`benchmark`. One `mla serve` runs for the folder and one for each URL, all at once, and wrk sends
German searches to them in turns, over 1, 32 and 128 connections. Ratios are ratios of medians.
The benchmark needs Debian's `wrk`, and the pack and the index of `make demo` and `make serve`.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.serving import Bench, Figures, wrk
from mla_ray.index.collection import CAPTIONS, IMAGES
from mla_ray.index.transfer import copy_index
from mla_ray.model.native import Native

CONNECTIONS = (1, 32, 128)


def measure(bench: Bench, urls: list[str], seconds: int, rounds: int) -> Figures:
    """Return searches per second by index and number of connections, and the ratios."""
    with ExitStack() as stack:
        sides = {"folder": stack.enter_context(bench.server("serve"))}
        for url in urls:
            index = f"{url}?prefix=benchmark"
            copy_index(f"edge:{bench.index}", index, (IMAGES, CAPTIONS), lambda progress: None)
            sides[url.partition(":")[0]] = stack.enter_context(bench.server("serve", index))
        rates: dict[str, dict[int, list[float]]] = {
            side: {connections: [] for connections in CONNECTIONS} for side in sides
        }
        failed = dict.fromkeys(sides, 0)
        for number in range(rounds + 1):
            for connections in CONNECTIONS:
                for side, url in sides.items():
                    result = wrk(url, connections, seconds, bench.searches(), bench.scratch)
                    failed[side] += result["failed"]
                    if number:  # the first round warms up
                        rates[side][connections].append(result["rate"])
    medians = {side: {c: median(of) for c, of in by.items()} for side, by in rates.items()}
    folder = medians["folder"]
    return {
        "searches/s": {
            side: {c: round(rate) for c, rate in by.items()} for side, by in medians.items()
        },
        "of the folder's": {
            side: {c: round(rate / folder[c], 2) for c, rate in by.items()}
            for side, by in medians.items()
            if side != "folder"
        },
        "failed": failed,
    }


def main() -> None:
    """Parse the options, measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mla-backends-") as scratch:
        bench = Bench(Native.load("emoji-clip"), given.run, given.data, Path(scratch), ("de",))
        figures = measure(bench, given.urls, given.seconds, given.rounds)
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
