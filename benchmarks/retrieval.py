"""Measure the memory and time of ranking captions against images with memory-mapped features.

    python benchmarks/retrieval.py [--images 20000] [--captions 20000] [--dim 512] [--folds 1]
        [--json retrieval.json]

Random features are written to `--scratch` in pieces and removed at the end. The private memory of
the process (RssAnon) is read twenty times per second. The memory before ranking is subtracted.
Mapped pages do not count, because the kernel can reclaim them at any time.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from mla_ray.evaluation.protocols import Protocol
from mla_ray.evaluation.recall import Floats, Rivals
from mla_ray.runtime.console import bars
from mla_ray.runtime.progress import counting

PIECE = 10_000

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""


def made(path: Path, rows: int, dim: int, seed: int) -> Floats:
    """Write normally distributed features to a file and map it: `[rows, dim]` float32."""
    generator = np.random.default_rng(seed)
    written = np.memmap(path, np.float32, "w+", shape=(rows, dim))
    for start in range(0, rows, PIECE):
        piece = written[start : start + PIECE]
        piece[:] = generator.standard_normal(piece.shape, dtype=np.float32)
    written.flush()
    return np.memmap(path, np.float32, "r", shape=(rows, dim))


def own_megabytes() -> float:
    """Return the private memory (RssAnon) of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no RssAnon; run this benchmark on Linux")


class Peak:
    """Context manager that records the memory at its start and the peak until its end."""

    def __enter__(self) -> "Peak":
        self.before = self.most = own_megabytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, own_megabytes())

    def __exit__(self, *fault: object) -> None:
        self._ended.set()
        self._thread.join()


def table(figures: Figures) -> list[list[str]]:
    """Return the rows of the table of the figures, the head first."""
    head = ["captions x images x dimensions", "galleries", "processor time, s", "s", "peak, MB"]
    size = "{captions:,} x {images:,} x {dim}".format(**figures)
    times = [f"{figures[name]:.1f}" for name in ("cpu", "seconds")]
    return [head, [size, str(figures["folds"]), *times, f"{figures['peak']:.0f}"]]


def main() -> None:
    """Parse the options, run the benchmark and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--rivals", choices=("captions", "images"), default="captions")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    images, captions, dim = options.images, options.captions, options.dim
    rivals: Rivals = options.rivals
    protocol = Protocol("measured", fold=images // options.folds, rivals=rivals)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder, bars() as report:
        image = made(Path(folder) / "image", images, dim, 0)
        text = made(Path(folder) / "text", captions, dim, 1)
        image_of = np.arange(captions) % images
        began, cpu = time.perf_counter(), time.process_time()
        with Peak() as peak:
            protocol.rank(text, image, image_of, counting(report, "ranking", 2 * captions))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"{captions:,} captions x {images:,} images x {dim}, galleries: {options.folds}, "
            f"rivals: {rivals}: {seconds:.1f} s, {cpu:.1f} s of CPU, "
            f"peak {peak.most - peak.before:.0f} MB"
        )
        del image, text
    if options.json:
        figures = {name: getattr(options, name) for name in ("captions", "images", "dim", "folds")}
        figures |= {"seconds": seconds, "cpu": cpu, "peak": peak.most - peak.before}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
