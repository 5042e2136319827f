"""Measure what captions take on three Qdrant nodes on this machine, for docs/sizing.md.

    python benchmarks/qdrant_nodes.py --start PROGRAM [--count 200000] [--dim 512] [--shards 6]
                                      [--json]

PROGRAM starts a node: `PROGRAM FOLDER HTTP_PORT GRPC_PORT [NAME=VALUE …] [-- ARGUMENT …]`, and
writes the process id to `FOLDER/pid`. The benchmark starts three, and makes a collection with two
copies of each shard, int8, and float32 vectors on disk. Vectors are random points of 32 dimensions,
mapped to `--dim`, with noise in all of them. A caption has 4 to 12 words, with frequencies as in
English (Zipf, 50,000 words). Then it prints:

- points/s written by `--writers` threads over gRPC, and seconds until all nodes are green;
- bytes on disk, by kind, and private and mapped memory of the nodes; all divided by points and
  copies;
- milliseconds of a search and of a hybrid search (k = 10, one at a time) and recall@10 by vector;
- the same after the last node was killed, with the number of searches that failed.
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.lexical import QueryText
from mla_ray.index.server import connect
from mla_ray.index.settings import IndexSettings
from mla_ray.index.status import status_of
from mla_ray.runtime.cluster import free_port
from mla_ray.runtime.console import bars
from mla_ray.runtime.progress import Progress, Report, counting

NODES, COPIES = 3, 2
LATENT, NOISE, WORDS = 32, 0.3, 50_000
PIECE, QUERIES, K = 1024, 200, 10

Vectors = npt.NDArray[np.float32]


def main() -> None:
    """Parse the options, start the nodes, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", required=True, metavar="PROGRAM")
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = Data(arguments.count, arguments.dim)
    settings = IndexSettings(
        quantization="int8",
        on_disk_vectors=True,
        shard_number=arguments.shards,
        replication_factor=COPIES,
    )
    with (
        tempfile.TemporaryDirectory() as scratch,
        nodes(arguments.start, Path(scratch)) as urls,
        bars() as report,
    ):
        figures = measured(urls, data, settings, Path(scratch), arguments.writers, report)
    print(json.dumps(figures, indent=None if arguments.json else 1))


class Data:
    """Captions with vectors, made piece by piece from a seed."""

    def __init__(self, count: int, dim: int) -> None:
        self.count = count
        self.space = VectorSpace("nodes", "c0ffee" * 4, dim)
        self._map = np.random.default_rng(0).standard_normal((LATENT, dim)).astype(np.float32)

    def vectors(self, seed: int, rows: int) -> Vectors:
        """Return unit vectors `[rows, dim]`."""
        rng = np.random.default_rng(seed)
        latent = rng.standard_normal((rows, LATENT), dtype=np.float32) @ self._map
        noise = rng.standard_normal(latent.shape, dtype=np.float32) * NOISE * LATENT**0.5
        made = latent + noise
        units: Vectors = made / np.linalg.norm(made, axis=1, keepdims=True)
        return units

    def captions(self, seed: int, rows: int) -> list[str]:
        """Return captions of words such as `w17`."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(4, 13, rows)
        ranks = np.minimum(rng.zipf(1.3, int(lengths.sum())), WORDS)
        parts = np.split(ranks, np.cumsum(lengths)[:-1])
        return [" ".join(f"w{rank}" for rank in part) for part in parts]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield start and number of rows of each piece."""
        for start in range(0, self.count, PIECE):
            yield start, min(PIECE, self.count - start)


@contextmanager
def nodes(program: str, scratch: Path) -> Iterator[list[str]]:
    """Start the nodes of a cluster; yield their gRPC URLs, and stop them."""
    first = f"http://127.0.0.1:{free_port()}"
    urls: list[str] = []
    try:
        for number in range(NODES):
            uri = f"http://127.0.0.1:{free_port()}" if urls else first
            grpc = free_port()
            command = [program, str(scratch / str(number)), str(free_port()), str(grpc)]
            command += ["QDRANT__CLUSTER__ENABLED=true"]
            command += [f"QDRANT__CLUSTER__P2P__PORT={uri.rpartition(':')[2]}", "--", "--uri", uri]
            subprocess.run([*command, *(["--bootstrap", first] if urls else [])], check=True)
            urls.append(f"grpc://127.0.0.1:{grpc}")
        yield urls
    finally:
        for number in range(len(urls)):
            with suppress(ProcessLookupError):  # the one that was killed
                os.kill(pid_of(scratch, number), signal.SIGTERM)


def pid_of(scratch: Path, number: int) -> int:
    """Return the process id of a node."""
    return int((scratch / str(number) / "pid").read_text())


def measured(
    urls: list[str],
    data: Data,
    settings: IndexSettings,
    scratch: Path,
    writers: int,
    report: Report,
) -> dict[str, Any]:
    """Write all captions, and return the figures."""
    figures: dict[str, Any] = {"points": data.count, "dim": data.space.dim}
    with CaptionIndex.open(urls[0], data.space, settings=settings) as index:

        def write(piece: tuple[int, int]) -> int:
            start, rows = piece
            texts = data.captions(start, rows)
            entries = [Entry(str(start + n), "i", "en", text, "s") for n, text in enumerate(texts)]
            return index.upsert(entries, data.vectors(start, rows))

        began = time.perf_counter()
        advance = counting(report, "writing", data.count)
        with ThreadPoolExecutor(writers) as pool:
            for rows in pool.map(write, data.pieces()):
                advance(rows)
        wrote = time.perf_counter()
        figures["points/s written"] = round(data.count / (wrote - began))
        advance = counting(report, "nodes that are green", NODES)
        for url in urls:
            while not is_green(url):
                time.sleep(1)
            advance(1)
        figures["green after, s"] = round(time.perf_counter() - wrote)
        figures["in the graph"] = status_of(urls[0]).collections[0].in_graph
        figures["bytes a point and copy"] = sizes(scratch, data.count * COPIES)
        queries = Queries(data, report)
        figures["three nodes"] = queries.searched(index)
        os.kill(pid_of(scratch, NODES - 1), signal.SIGKILL)
        figures["two nodes"] = queries.searched(index)
    return figures


def is_green(url: str) -> bool:
    """Return whether a node has built all graphs."""
    with closing(connect(url, 60)) as client:
        aliases = client.get_aliases().aliases
        return str(client.get_collection(aliases[0].alias_name).status) == "green"


def sizes(scratch: Path, points: int) -> dict[str, int]:
    """Return bytes of disk by kind, and of memory, divided by the points of all copies."""
    total: Counter[str] = Counter()
    for path in scratch.rglob("*"):
        parts = path.relative_to(scratch).parts
        if path.is_file() and ("segments" in parts or "wal" in parts):
            kind = parts[parts.index("segments") + 2] if "segments" in parts else "log"
            total[f"disk: {kind}"] += path.stat().st_blocks * 512
    for number in range(NODES):
        status = Path(f"/proc/{pid_of(scratch, number)}/status").read_text()
        for line in status.splitlines():
            if line.startswith(("RssAnon:", "RssFile:")):
                total[f"memory: {line[:7]}"] += int(line.split()[1]) * 1024
    return {kind: round(size / points) for kind, size in sorted(total.items())}


class Queries:
    """Queries, and the entries nearest to each by exact search."""

    def __init__(self, data: Data, report: Report) -> None:
        self._vectors = data.vectors(data.count + 1, QUERIES)
        self._texts = data.captions(data.count + 1, QUERIES)
        self._report = report
        advance = counting(report, "exact search", data.count)
        best = np.full((QUERIES, K), -2.0, np.float32)
        self._ids = np.zeros((QUERIES, K), np.int64)
        for start, rows in data.pieces():
            scores = np.hstack([best, self._vectors @ data.vectors(start, rows).T])
            order = np.argpartition(-scores, K, axis=1)[:, :K]
            new = np.broadcast_to(np.arange(start, start + rows), (QUERIES, rows))
            best = np.take_along_axis(scores, order, 1)
            self._ids = np.take_along_axis(np.hstack([self._ids, new]), order, 1)
            advance(rows)

    def searched(self, index: CaptionIndex) -> dict[str, Any]:
        """Return latencies of both kinds of search, searches that failed, and the recall."""
        shared, failed = 0, 0
        latencies: dict[str, list[float]] = {"vector": [], "hybrid": []}
        for row in range(QUERIES):  # both kinds take turns
            for kind, times in latencies.items():
                words = QueryText(self._texts[row], "en") if kind == "hybrid" else None
                began = time.perf_counter()
                try:
                    hits = index.search(self._vectors[row], K, hybrid=words)
                except OSError:
                    failed += 1
                    continue
                times.append(1000 * (time.perf_counter() - began))
                if kind == "vector":
                    shared += len({int(hit.entry.id) for hit in hits} & set(self._ids[row]))
            self._report(Progress("searches", row + 1, QUERIES))
        return {
            "recall@10": round(shared / K / max(1, len(latencies["vector"])), 4),
            "failed": failed,
            "ms, p50 and p99": {
                kind: [round(float(np.percentile(times, share)), 1) for share in (50, 99)]
                for kind, times in latencies.items()
                if times
            },
        }


if __name__ == "__main__":
    main()
