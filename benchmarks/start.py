"""Measure what commands cost before they do their work: imports, the native, small tables.

    python benchmarks/start.py [--rounds 3] [--json start.json]

Each command runs in its own process. The tables are artificial: 400 pairs of English and an
invented language, and 8 drawings with captions. Processor time is that of the command and of all
processes that it waits for, in user and kernel mode. It depends less on the load of the machine
than seconds do. Medians are reported.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.table import Table

from mla_ray.runtime.console import stdout

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

LANGUAGE = "art"  # ISO 639 code for artificial languages
PAIRS, IMAGES = 400, 8
WORDS = ("dog", "cat", "house", "boat", "tree", "red", "blue", "small", "large", "old")
SETTINGS = """\
nlt: {steps: 8, batch: 32, lr: 0.001}
le: {steps: 0, batch: 32, lr: 0.00003}
vocab_size: 500
"""


def write_tables(folder: Path) -> None:
    """Write the pairs, the captions with their drawings, and the settings of the training."""
    rng = np.random.default_rng(0)
    english = [" ".join(WORDS[int(digit)] for digit in f"{row:03}") for row in range(PAIRS)]
    foreign = [" ".join(word[::-1] + "o" for word in text.split()) for text in english]
    pairs = {"source": english, "target": foreign, "language": [LANGUAGE] * PAIRS}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    drawings = []
    for _ in range(IMAGES):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        drawings.append(buffer.getvalue())
    captions = {
        "image_id": [f"image {number}" for number in range(IMAGES)],
        "image": pa.array(drawings, pa.large_binary()),
        "language": ["en"] * IMAGES,
        "caption": english[:IMAGES],
        "split": ["train"] * IMAGES,
    }
    pq.write_table(pa.table(captions), folder / "captions.parquet")
    (folder / "settings.yaml").write_text(SETTINGS)


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the commands by name. Later ones use what earlier ones write."""
    mla = [sys.executable, "-m", "mla_ray"]
    index = f"edge:{folder / 'index'}"
    acquire = ["acquire", "--language", LANGUAGE, "--pairs", str(folder / "pairs.parquet")]
    acquire += ["--config", str(folder / "settings.yaml"), "--out", str(folder / "pack")]
    acquire += ["--data", str(folder / "data"), "--workers", "0", "--json"]
    write = ["index", "--captions", str(folder / "captions.parquet"), "--index", index, "--json"]
    search = ["search", "dog", "--language", "en", "--index", index, "--json"]
    return {
        "import torch, open_clip": [sys.executable, "-c", "import torch, open_clip"],
        "mla --version": [*mla, "--version"],
        "mla acquire --workers 0": [*mla, *acquire],
        "mla index": [*mla, *write],
        "mla index, nothing new": [*mla, *write],
        "mla search --index": [*mla, *search],
    }


def cost(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command in a folder. Return its seconds and its seconds of processor time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu": cpu}


def measure(rounds: int) -> Figures:
    """Run all commands `rounds` times, each round in a new folder."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="mla-start-") as scratch:
            folder = Path(scratch)
            write_tables(folder)
            for name, command in commands(folder).items():
                found.setdefault(name, []).append(cost(command, folder))
    return {
        name: {what: median(each[what] for each in costs) for what in ("cpu", "seconds")}
        for name, costs in found.items()
    }


def table(figures: Figures) -> list[list[str]]:
    """Return the rows of the table of the figures, the head first."""
    head = ["", "processor time, s", "s"]
    return [head] + [
        [name, f"{cost['cpu']:.1f}", f"{cost['seconds']:.1f}"] for name, cost in figures.items()
    ]


def main() -> None:
    """Parse the options, run the commands and print their costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    figures = measure(args.rounds)
    head, *rows = table(figures)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    stdout.print(shown)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
