"""Measure searches that run together against the same searches one by one.

    python benchmarks/together.py [URL ...] [--rounds 20] [--json together.json]

Each URL is an index: `edge:FOLDER`, or a Qdrant server over HTTP or gRPC. The default is a new
folder. The benchmark writes
4,000 random vectors of 128 dimensions to the collection `together` there, and searches for 32
others: once with `search`, once with `search_all`. All sides take turns. Medians are printed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.search import Search

SPACE = VectorSpace("together", "c0ffee" * 4, 128)
POINTS, SEARCHES = 4000, 32

Figures = dict[str, dict[str, float]]
"""Milliseconds by side, in the format of the JSON file."""


def fill(index: CaptionIndex) -> None:
    """Write the points of the benchmark."""
    entries = [Entry(f"i{i}", f"i{i}", "", "", "benchmark") for i in range(POINTS)]
    vectors = np.random.default_rng(0).normal(size=(POINTS, SPACE.dim)).astype(np.float32)
    index.upsert(entries, vectors)
    index.optimize()


def one_by_one(index: CaptionIndex, searches: list[Search]) -> None:
    """Run each search alone."""
    for search in searches:
        index.search(search.vector, search.k)


def measure(urls: list[str], rounds: int) -> Figures:
    """Return the median milliseconds of all sides, which take turns."""
    vectors = np.random.default_rng(1).normal(size=(SEARCHES, SPACE.dim)).astype(np.float32)
    searches = [Search(vector, 11) for vector in vectors]
    with ExitStack() as stack:
        sides: dict[str, Callable[[], object]] = {}
        for url in urls:
            index = stack.enter_context(CaptionIndex.open(url, SPACE, "together"))
            fill(index)
            engine = url.partition(":")[0]
            sides[f"{engine}, one by one"] = partial(one_by_one, index, searches)
            sides[f"{engine}, together"] = partial(index.search_all, searches)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                times[side].append(spent)
    figures = {}
    for side, spent_by_round in times.items():
        wall, cpu = (1000 * median(column) for column in zip(*spent_by_round, strict=True))
        figures[side] = {"ms": wall, "cpu": cpu}
    return figures


def table(figures: Figures) -> list[list[str]]:
    """Return the rows of the table of the figures, the head first."""
    head = [f"{SEARCHES} searches", "ms", "this process's CPU, ms"]
    return [head] + [
        [side, f"{each['ms']:.1f}", f"{each['cpu']:.1f}"] for side, each in figures.items()
    ]


def main() -> None:
    """Parse the options, measure all sides and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("urls", nargs="*", metavar="URL")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mla-together-") as scratch:
        figures = measure(args.urls or [f"edge:{scratch}"], args.rounds)
    for row in table(figures)[1:]:
        print("{}: {} ms, {} ms of this process's CPU".format(*row))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
