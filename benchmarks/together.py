"""Measure searches that run together against the same searches one by one.

    python benchmarks/together.py URL [URL ...] [--rounds 20]

Each URL is an index: `edge:FOLDER`, or a Qdrant server over HTTP or gRPC. The benchmark writes
4,000 random vectors of 128 dimensions to the collection `together` there, and searches for 32
others: once with `search`, once with `search_all`. All sides take turns. Medians are printed.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

import numpy as np

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.search import Search

SPACE = VectorSpace("together", "c0ffee" * 4, 128)
POINTS, SEARCHES = 4000, 32


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


def main() -> None:
    """Measure all sides in turns and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    vectors = np.random.default_rng(1).normal(size=(SEARCHES, SPACE.dim)).astype(np.float32)
    searches = [Search(vector, 11) for vector in vectors]
    with ExitStack() as stack:
        sides: dict[str, Callable[[], object]] = {}
        for url in args.urls:
            index = stack.enter_context(CaptionIndex.open(url, SPACE, "together"))
            fill(index)
            sides[f"{url} one by one"] = partial(one_by_one, index, searches)
            sides[f"{url} together"] = partial(index.search_all, searches)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, run in sides.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                times[side].append(spent)
    for side, spent_by_round in times.items():
        wall, cpu = (1000 * median(column) for column in zip(*spent_by_round, strict=True))
        print(f"{side}: {wall:.1f} ms, {cpu:.1f} ms of this process's CPU, for {SEARCHES} searches")


if __name__ == "__main__":
    main()
