"""Measure the embedded Qdrant engine with a million captions, and compare it with local mode.

    python benchmarks/index.py [--count 1000000] [--queries 500] [--json index.json]

Captions are distinct pairs "NAME and NAME" of the 1,200 shortest English emoji names (1,438,800
possible pairs; longer names would only increase the encoding time). The bundled native `emoji-clip`
encodes them. A fixed seeded matrix with orthonormal columns maps its 256 dimensions to 512, which
keeps every cosine. Isotropic Gaussian noise with an expected norm of a quarter of the vector's norm
is then added, so that the set uses all 512 dimensions. Queries are other captions of the same kind
that are not in the set. Texts and encoder are real, and the added half of the dimensions is not.

`CaptionIndex.upsert` writes the points, and `CaptionIndex.optimize` builds the graph.
`CaptionIndex.search(k=10)` answers queries with payloads, one at a time in one thread. Recall@10 is
computed against all cosines by NumPy in float32. The same points are then written to the local mode
of qdrant-client (`:memory:`), which answers the first few of the same queries. Local mode is exact,
and its recall confirms it.

`--folder` keeps vectors and shard. An interrupted run resumes there and does not repeat finished
work. It reports the times that were measured when the work was done. Run nothing else meanwhile.

Shapes: N points, Q queries, E joint size, F the native's own.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

from mla_ray.data.feature_store import encode_texts
from mla_ray.datasets.emoji import Emoji
from mla_ray.index.backend import HNSW_EF, VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.settings import IndexSettings, Quantization
from mla_ray.model.native import Native
from mla_ray.runtime.console import bars, stdout
from mla_ray.runtime.progress import Progress, Report

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

Vectors = npt.NDArray[np.float32]
NAMES, DIM, NOISE, K, SEED = 1200, 512, 0.25, 10, 0
BLOCK = 10_000
"""Number of captions that are encoded, written and compared at a time."""


class Corpus:
    """`count` captions and `queries` further captions for queries, in a fixed random order."""

    def __init__(self, folder: Path, count: int, queries: int) -> None:
        labels = Emoji(Path("data/emoji")).labels("en").values()
        names = sorted({label.name for label in labels}, key=lambda name: (len(name), name))[:NAMES]
        pairs = np.random.default_rng(SEED).permutation(NAMES * NAMES)
        first, second = np.divmod(pairs, NAMES)
        keep = first != second
        self.names = names
        self.first, self.second = first[keep], second[keep]
        # Queries come from the end, so they are never in the set, whatever its size.
        if count + queries > len(self.first):
            raise ValueError(f"there are {len(self.first)} captions; ask for fewer")
        self.count, self.queries = count, queries
        self.folder = folder / "features"
        gaussian = np.random.default_rng(SEED).normal(size=(DIM, DIM))
        self.basis = np.linalg.qr(gaussian)[0].astype(np.float32)

    def texts(self, start: int, stop: int) -> list[str]:
        """Return the captions from row `start` to before row `stop`."""
        rows = zip(self.first[start:stop], self.second[start:stop], strict=True)
        return [f"{self.names[a]} and {self.names[b]}" for a, b in rows]

    def encode(self, native: Native, report: Report) -> dict[str, float]:
        """Encode the blocks that the folder lacks, and write one file per block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spans = [*self._spans(), (len(self.first) - self.queries, len(self.first))]
        began, fresh = time.perf_counter(), 0
        for start, stop in spans:
            path = self._path(start, stop)
            if not path.exists():
                scratch = path.with_suffix(".tmp")
                with scratch.open("wb") as file:
                    np.save(file, encode_texts(native, self.texts(start, stop)))
                scratch.replace(path)
                fresh += stop - start
            report(Progress("encoding", min(stop, self.count), self.count))
        return rate("texts", fresh, time.perf_counter() - began)

    def blocks(self, start: int = 0) -> Iterator[tuple[list[Entry], Vectors]]:
        """Yield entries and vectors `[B, E]` of the blocks from row `start` on.

        `start` must be the first row of a block.
        """
        for low, high in self._spans():
            if low >= start:
                texts = self.texts(low, high)
                entries = [
                    Entry(str(low + row), "", "en", text, "benchmark")
                    for row, text in enumerate(texts)
                ]
                yield entries, self._vectors(low, high)

    def query_vectors(self) -> Vectors:
        """Return the vectors of the queries, `[Q, E]` float32."""
        return self._vectors(len(self.first) - self.queries, len(self.first))

    def _vectors(self, start: int, stop: int) -> Vectors:
        features_BF = np.load(self._path(start, stop))
        vectors_BE = features_BF @ self.basis[:, : features_BF.shape[1]].T
        rng = np.random.default_rng([SEED, start])
        noise_BE = rng.normal(size=vectors_BE.shape).astype(np.float32) / np.float32(DIM**0.5)
        norms_B1 = np.linalg.norm(vectors_BE, axis=1, keepdims=True)
        noisy: Vectors = vectors_BE + np.float32(NOISE) * norms_B1 * noise_BE
        return noisy

    def _spans(self) -> list[tuple[int, int]]:
        return [(low, min(low + BLOCK, self.count)) for low in range(0, self.count, BLOCK)]

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{start}-{stop}.npy"


def rate(what: str, count: int, seconds: float) -> dict[str, float]:
    """Return the rate per second and the seconds, or an empty dict if `count` is 0."""
    return {f"{what}/s": count / seconds, f"{what} seconds": seconds} if count else {}


def exact(corpus: Corpus, queries_QE: Vectors, report: Report) -> list[list[str]]:
    """Return the ids of the K nearest captions of each query, by exact search."""
    units_QE = queries_QE / np.linalg.norm(queries_QE, axis=1, keepdims=True)
    best_QK = np.full((len(queries_QE), K), -np.inf, np.float32)
    ids_QK = np.zeros((len(queries_QE), K), np.int64)
    done = 0
    for _, vectors_BE in corpus.blocks():
        units_BE = vectors_BE / np.linalg.norm(vectors_BE, axis=1, keepdims=True)
        scores = np.concatenate([best_QK, units_QE @ units_BE.T], axis=1)
        rows_B = np.arange(done, done + len(vectors_BE))
        ids = np.concatenate([ids_QK, np.broadcast_to(rows_B, (len(ids_QK), len(rows_B)))], axis=1)
        top = np.argpartition(-scores, K, axis=1)[:, :K]
        best_QK, ids_QK = np.take_along_axis(scores, top, 1), np.take_along_axis(ids, top, 1)
        done += len(vectors_BE)
        report(Progress("exact", done, corpus.count))
    return [[str(row) for row in rows] for rows in ids_QK]


def write(index: CaptionIndex, corpus: Corpus, phase: str, report: Report) -> dict[str, float]:
    """Upsert the blocks that the index lacks. The last block present may be written again."""
    there = index.count()
    start = corpus.count if there == corpus.count else there // BLOCK * BLOCK
    began, done = time.perf_counter(), start
    for entries, vectors_BE in corpus.blocks(start):
        done += index.upsert(entries, vectors_BE)
        report(Progress(phase, done, corpus.count))
    return rate("points", done - start, time.perf_counter() - began)


def ask(
    index: CaptionIndex, queries_QE: Vectors, truth: list[list[str]], phase: str, report: Report
) -> dict[str, float]:
    """Search for each query. Return the recall@10 and quantiles of the latency."""
    times, recalls = [], []
    for row, query in enumerate(queries_QE):
        began = time.perf_counter()
        hits = index.search(query, K)
        times.append(time.perf_counter() - began)
        recalls.append(len({hit.entry.id for hit in hits} & set(truth[row])) / K)
        report(Progress(phase, row + 1, len(queries_QE)))
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {
        "recall@10": float(np.mean(recalls)),
        "p50 ms": float(p50) * 1e3,
        "p99 ms": float(p99) * 1e3,
        "queries": len(times),
    }


def remember(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what `make` measured in this run and earlier runs, and store it in `path`.

    If several runs did the work, their seconds are added.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    fresh = make()
    for name in fresh:
        if name.endswith(" seconds"):
            what = name.removesuffix(" seconds")
            done = sum(m.get(f"{what}/s", 0) * m.get(name, 0) for m in (known, fresh))
            seconds = known.get(name, 0) + fresh[name]
            known |= {name: seconds, f"{what}/s": done / seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known))
    return known


def optimize(index: CaptionIndex) -> dict[str, float]:
    """Build the graph. Return its rate, or an empty dict if that took at most one second.

    A shorter time means that the graph already existed.
    """
    began = time.perf_counter()
    index.optimize()
    seconds = time.perf_counter() - began
    return rate("graph points", index.count(), seconds) if seconds > 1 else {}


def run(args: argparse.Namespace, report: Report) -> Figures:
    """Run the benchmark with the given options."""
    native = Native.load("emoji-clip")
    corpus = Corpus(args.folder, args.count, args.queries)
    made = args.folder / f"{args.count}{'-' + args.quantization if args.quantization else ''}"
    result: Figures = {
        "count": args.count,
        "dim": DIM,
        "hnsw_ef": HNSW_EF,
        "quantization": args.quantization,
        "threads": torch.get_num_threads(),
    }
    result["encoding"] = remember(made / "encoding.json", lambda: corpus.encode(native, report))
    queries_QE = corpus.query_vectors()
    truth = exact(corpus, queries_QE, report)
    space = VectorSpace(native.name, native.fingerprint, DIM)
    settings = IndexSettings(quantization=args.quantization)
    with CaptionIndex.open(f"edge:{made}", space, settings=settings) as index:
        result["edge"] = remember(
            made / "upsert.json", lambda: write(index, corpus, "edge: upsert", report)
        )
        report(Progress("edge: graph", 0, 1))
        result["edge"] |= remember(made / "graph.json", lambda: optimize(index))
        report(Progress("edge: graph", 1, 1))
        ask(index, queries_QE[:50], truth, "edge: warm-up", report)
        result["edge"] |= ask(index, queries_QE, truth, "edge: search", report)
    result["edge"]["MB on disk"] = (
        sum(
            path.stat().st_blocks * 512 for path in (made / "captions").rglob("*") if path.is_file()
        )
        / 1e6
    )
    if args.local_queries:
        with CaptionIndex.open(":memory:", space) as index:
            result["local"] = write(index, corpus, "local: upsert", report)
            ask(index, queries_QE[:1], truth, "local: warm-up", report)
            asked = queries_QE[: args.local_queries]
            result["local"] |= ask(index, asked, truth, "local: search", report)
        result["edge is faster by, p50"] = result["local"]["p50 ms"] / result["edge"]["p50 ms"]
    return result


def show(result: Figures) -> None:
    """Print the measurements as tables."""
    about = (__doc__ or "").split("\n\n")[2]  # the paragraph about the captions
    stdout.print(about, highlight=False, soft_wrap=True)
    head = ("", "recall@10", "p50 ms", "p99 ms", "asked", "points/s", "graph s", "MB")
    table = Table(*head, title=f"{result['count']:,} captions, {result['dim']} dimensions")
    for name in ("edge", "local"):
        if side := result.get(name):
            cells = [f"{side['recall@10']:.4f}", f"{side['p50 ms']:.2f}", f"{side['p99 ms']:.2f}"]
            cells += [str(side["queries"])]
            for key in ("points/s", "graph points seconds", "MB on disk"):
                cells.append(f"{side[key]:,.0f}" if key in side else "–")
            table.add_row(name, *cells)
    stdout.print(table)
    if encoding := result["encoding"]:
        stdout.print(f"encoding: {encoding['texts/s']:,.0f} texts/s, {result['threads']} threads")
    if "local" in result:
        stdout.print(f"edge is faster by, p50: {result['edge is faster by, p50']:.0f}x")


def main() -> None:
    """Parse the options and run the benchmark."""
    parser = argparse.ArgumentParser(
        description="Measure the embedded Qdrant engine with a million captions."
    )
    for name, default in {"count": 1_000_000, "queries": 500, "local-queries": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quantization", choices=get_args(Quantization), help="of the edge index")
    parser.add_argument("--folder", type=Path, default=Path("runs/index-benchmark"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    with bars() as report:
        result = run(args, report)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
