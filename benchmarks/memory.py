"""Measure the peak memory of every process of an acquisition, from 10,000 to 10 million pairs.

    python benchmarks/memory.py [--rows 10000,100000,1000000,10000000] [--json memory.json]

The table is artificial and streamed to Parquet. It contains distinct English texts of four to six
words that emoji-clip knows, and their word-for-word translations into an artificial language. Each
step runs in its own process and, if it needs Ray, in its own Ray session: *prepare* (no Ray),
*encode* (Ray Data), *acquire* (Ray Train, one worker).

The benchmark reads these sizes of the step's process and of all its descendants:

- RSS, five times per second. It is the kernel's high-water mark (VmHWM), so no peak is missed
  between two reads. Shared pages count in every process, such as torch's libraries and, in the
  raylet, Ray's object store.
- Private memory, once per second, from smaps_rollup. It contains the pages of this process only.
- PSS, once per second, from smaps_rollup. Shared pages are divided among their processes, so PSS
  can be added up over processes.

If several processes have the same role (two encoders), the largest one counts. "all" is the largest
sum of PSS. The Parquet files on disk and the scratch files of prepare are measured, too.

The default native is tiny (random weights, 3 blocks, E = 32), so that two cores can encode 10
million texts. The sizes that depend on E can be calculated. A block has at most 16,384 rows. An
encoder holds the features of one block, and a training worker holds two blocks per table. A block
takes 2 MB for E = 32 and 34 MB for E = 512. Ids and keys do not depend on E. A feature takes 4 E
bytes on disk, so 10 million take 1.3 GB for E = 32 and 20 GB for E = 512. `--native emoji-clip`
selects a real native.

All files are made in `--scratch` and removed at the end.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.table import Table
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji import Emoji
from mla_ray.datasets.emoji_tables import words_of
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import BOS, EOS, PAD, learn
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.console import stderr, stdout
from mla_ray.runtime.storage import as_path
from mla_ray.training.acquisition import acquire, begin, encode
from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.encode_features import Encoders
from mla_ray.training.prepare import prepare
from mla_ray.training.pretraining import save_native
from mla_ray.training.workers import Workers

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

STEPS = ("prepare", "encode", "acquire")
LANGUAGE = "art"  # ISO 639 code for artificial languages
GROUP = 100_000
EVERY, LOOK_CLOSELY = 0.2, 5
MB = 1e6

# --- the table ---------------------------------------------------------------------------------


def known_words(data: Path) -> list[str]:
    """Return the words of emoji names and keywords in a shuffled but fixed order."""
    labels = Emoji(data / "emoji").labels("en").values()
    texts = (text for label in labels for text in (label.name, *label.keywords))
    return sorted({word for text in texts for word in words_of(text)}, key=hash_of)


def hash_of(word: str) -> int:
    """Return a hash of a word that is the same in every process."""
    return int.from_bytes(word.encode()[:8], "big") * 2_654_435_761 % 2**32


def translation(number: int) -> str:
    """Return the unique artificial word for the English word with this number."""
    syllables = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]
    found, number = "", number + len(syllables)
    while number:
        number, place = divmod(number, len(syllables))
        found += syllables[place]
    return found


def pieces(words: list[str], rows: int) -> Iterator[pa.Table]:
    """Yield tables of distinct pairs.

    For each text length, the words of text n are the digits of a scrambled n in base `len(words)`.
    """
    english = pa.array(words)
    foreign = pa.array([translation(number) for number in range(len(words))])
    lengths = (4, 5, 6)
    for start in range(0, rows, GROUP):
        columns: dict[str, list[pa.Array]] = {"source": [], "target": []}
        for length in lengths:
            stop = min(start + GROUP, rows)
            numbers = [n for n in range(start, stop) if n % len(lengths) == length - lengths[0]]
            base = len(words) ** length
            factor = int(base * 0.6180339887) | 1
            while math.gcd(factor, base) > 1:
                factor += 2
            codes = [number * factor % base for number in numbers]
            places = [
                pa.array([code // len(words) ** at_word % len(words) for code in codes])
                for at_word in range(length)
            ]
            for column, known in (("source", english), ("target", foreign)):
                taken = [known.take(place) for place in places]
                columns[column].append(pc.binary_join_element_wise(*taken, " "))
        yield pa.table({name: pa.chunked_array(parts) for name, parts in columns.items()})


def write_pairs(path: Path, words: list[str], rows: int) -> None:
    """Write a translation table of `rows` pairs to a Parquet file."""
    writer: Any = None
    for piece in pieces(words, rows):
        writer = writer or pq.ParquetWriter(path, piece.schema)
        writer.write_table(piece, row_group_size=GROUP)
    writer.close()


# --- the native --------------------------------------------------------------------------------


def save_tiny(folder: Path, words: list[str]) -> None:
    """Save a tiny CLIP with random weights and a tokenizer for these words."""
    context, width = 24, 32
    learned: Tokenizer = learn(words * 2, 8_000)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
    )
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text: dict[str, Any] = {"context_length": context, "width": width, "heads": 2, "layers": 3}
    text |= {"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "in this folder"}
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=width,
        vision_cfg=dict(vision),
        text_cfg=text | {"vocab_size": len(tokenizer)},
    )
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    save_native(folder, model, config, tokenizer)


# --- the steps, each in its own process --------------------------------------------------------


def step(name: str, folder: Path, native_name: str, steps: int, batch: int) -> dict[str, float]:
    """Run one step in the same way as the job of that name.

    Returns:
        The number of rows, and the seconds without imports and the start of Ray.

    """
    corpus = Corpus(LANGUAGE, [str(folder / "pairs.parquet")])
    config = AcquireConfig(
        nlt=Stage(steps=steps, batch=batch, lr=1e-3),
        le=Stage(steps=0, batch=batch, lr=3e-5),
        checkpoint_every=max(1, steps // 4),
    )
    run, store = as_path(folder / "run"), as_path(folder / "features")
    encoders = Encoders(most=2)
    native = Native.load(native_name)
    if name == "prepare":
        began = time.perf_counter()
        begin(native, [corpus], config, run, resume=True)
        rows = prepare(native, [corpus], config, run).rows[LANGUAGE]
        return {"seconds": time.perf_counter() - began, "rows": sum(rows.values())}
    with ray_session():
        began = time.perf_counter()
        if name == "encode":
            rows_done = encode(native, [corpus], run, store, lambda progress: None, encoders)
            return {"seconds": time.perf_counter() - began, "rows": rows_done.computed}
        acquire(
            native_name,
            [corpus],
            config,
            run,
            store=store,
            workers=Workers(1),
            encoders=encoders,
            resume=True,
        )
        return {"seconds": time.perf_counter() - began, "rows": steps * batch}


# --- watching ----------------------------------------------------------------------------------


@dataclass
class Watched:
    """Peaks in bytes: of the largest process of each role, and of all processes together."""

    rss: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    private: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    processes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shared: int = 0
    """Pages of Ray's object store that the raylet has touched."""
    pss: int = 0
    scratch: int = 0
    """Size of the files in the temporary folder, which is not that of Ray."""

    def look(self, root: psutil.Process, temporary: Path, closely: bool) -> None:
        """Update the peaks from the current sizes.

        Args:
            root: Process of the step.
            temporary: Temporary folder of the step.
            closely: Whether to read smaps_rollup and the folder as well, which takes longer.

        """
        count: dict[str, int] = defaultdict(int)
        pss = 0
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error, OSError):  # the process has ended
                who = "driver" if process.pid == root.pid else role(process)
                count[who] += 1
                status = kilobytes(f"/proc/{process.pid}/status")
                self.rss[who] = max(self.rss[who], status.get("VmHWM", 0))
                if who == "raylet":
                    self.shared = max(self.shared, status.get("RssShmem", 0))
                if closely:
                    rollup = kilobytes(f"/proc/{process.pid}/smaps_rollup")
                    mine = rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0)
                    self.private[who] = max(self.private[who], mine)
                    pss += rollup.get("Pss", 0)
        for who, number in count.items():
            self.processes[who] = max(self.processes[who], number)
        self.pss = max(self.pss, pss)
        if closely:
            self.scratch = max(self.scratch, size_of(temporary))


def role(process: psutil.Process) -> str:
    """Return the role of a process. Ray writes the role of a worker into its command line."""
    title = (process.cmdline() or [process.name()])[0]
    for part, who in (("_Encoder", "encoder"), ("RayTrainWorker", "training worker")):
        if part in title:
            return who
    if title.startswith("ray::"):
        return "Ray's other workers"
    return "raylet" if process.name() == "raylet" else "Ray's other services"


def kilobytes(path: str) -> dict[str, int]:
    """Return the sizes in a file of /proc by name, converted from kB to bytes."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value[:-3]) * 1024
    return found


def size_of(folder: Path) -> int:
    """Return the bytes on disk of all files below a folder. Files may disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total


def measured(command: list[str], temporary: Path) -> tuple[dict[str, float], Watched]:
    """Run a step and record its memory. Return its last output line, parsed, and the peaks."""
    temporary.mkdir(parents=True, exist_ok=True)
    watched, looks = Watched(), 0
    # Ray's sockets need a short path, and its logs must not count as scratch files.
    environment = os.environ | {"TMPDIR": str(temporary), "RAY_TMPDIR": tempfile.gettempdir()}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        root = psutil.Process(child.pid)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(child.stdout or ()))
        reader.start()
        while child.poll() is None:
            with suppress(psutil.NoSuchProcess):
                watched.look(root, temporary, closely=looks % LOOK_CLOSELY == 0)
            looks += 1
            time.sleep(EVERY)
        reader.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return json.loads(lines[-1]), watched


def run(args: argparse.Namespace, scratch: Path) -> list[Figures]:
    """Run all steps for each number of rows."""
    words = known_words(args.data)
    native = args.native
    if native == "tiny":
        native = str(scratch / "tiny-clip")
        save_tiny(scratch / "tiny-clip", words)
    found = []
    for rows in args.rows:
        folder = scratch / str(rows)
        folder.mkdir()
        write_pairs(folder / "pairs.parquet", words, rows)
        sizes: dict[str, float] = {"table": (folder / "pairs.parquet").stat().st_size / MB}
        steps = {}
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
            command += ["--native", native, "--steps", str(args.steps), "--batch", str(args.batch)]
            result, watched = measured(command, folder / "tmp")
            steps[name] = {
                **result,
                "rate": result["rows"] / result["seconds"],
                "rss": {who: size / MB for who, size in watched.rss.items()},
                "private": {who: size / MB for who, size in watched.private.items()},
                "processes": dict(watched.processes),
                "object store": watched.shared / MB,
                "pss": watched.pss / MB,
            }
            if name == "prepare":
                sizes |= {"prepared": size_of(folder / "run" / "data") / MB}
                sizes |= {"scratch": watched.scratch / MB}
            stderr.print(f"{rows:,} {name}: {result['seconds']:.1f} s")
        sizes |= {"features": size_of(folder / "features") / MB}
        found.append({"rows": rows, "steps": steps, "MB on disk": sizes})
        shutil.rmtree(folder, ignore_errors=True)
    return found


# --- showing -----------------------------------------------------------------------------------

SHOWN = {
    "prepare": ("driver",),
    "encode": ("driver", "encoder", "raylet"),
    "acquire": ("driver", "training worker", "raylet"),
}


def growth(measured: list[Figures], name: str, who: str) -> float | None:
    """Return the growth of peak RSS in percent from `base(measured)` to the most rows."""
    before, after = (one["steps"][name]["rss"].get(who) for one in (base(measured), measured[-1]))
    if before is None or after is None or base(measured) is measured[-1]:
        return None
    return 100 * (float(after) / float(before) - 1)


def base(measured: list[Figures]) -> Figures:
    """Return the baseline of the growth: 100,000 rows if measured, or else the fewest rows."""
    return next((one for one in measured if one["rows"] == 100_000), measured[0])


def show(measured: list[Figures], native: str) -> None:
    """Print the measurements as tables."""
    head = [f"{one['rows']:,}" for one in measured]
    title = f"Peak RSS (private) in MB by pairs, native {native}"
    table = Table("", *head, f"from {base(measured)['rows']:,}", title=title)
    for name, roles in SHOWN.items():
        for who in roles:
            cells = []
            for one in measured:
                step_of = one["steps"][name]
                private = step_of["private"].get(who, 0)
                cells.append(f"{step_of['rss'].get(who, 0):,.0f} ({private:,.0f})")
            grown = growth(measured, name, who)
            table.add_row(f"{name}: {who}", *cells, "" if grown is None else f"{grown:+.0f} %")
        total = [f"{one['steps'][name]['pss']:,.0f}" for one in measured]
        table.add_row(f"{name}: all, PSS", *total, "", end_section=True)
    stdout.print(table)
    table = Table("", *head, title="Seconds, rates, MB on disk")
    units = {"prepare": "rows/s", "encode": "texts/s", "acquire": "texts/s"}
    for name, unit in units.items():
        steps = [one["steps"][name] for one in measured]
        table.add_row(
            f"{name}: s ({unit})", *(f"{s['seconds']:,.1f} ({s['rate']:,.0f})" for s in steps)
        )
    for what in measured[0]["MB on disk"]:
        table.add_row(f"{what}, MB", *(f"{one['MB on disk'][what]:,.0f}" for one in measured))
    stdout.print(table)


def main() -> None:
    """Parse the options and run the benchmark, or one step of it."""
    parser = argparse.ArgumentParser(description="Peak memory of an acquisition by table size.")
    parser.add_argument(
        "--rows", default="10000,100000,1000000,10000000", help="numbers of pairs, comma-separated"
    )
    parser.add_argument("--native", default="tiny", help="tiny, emoji-clip, or any other native")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the emoji data")
    parser.add_argument("--scratch", type=Path, help="folder for files (default: the system's)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        result = step(args.step, args.folder, args.native, args.steps, args.batch)
        stdout.file.write(json.dumps(result) + "\n")
        return
    args.rows = sorted(int(number) for number in args.rows.split(","))
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="mla-memory-", dir=args.scratch, ignore_cleanup_errors=True
    ) as scratch:
        measured = run(args, Path(scratch))
    show(measured, args.native)
    if args.json:
        args.json.write_text(
            json.dumps({"native": args.native, "by rows": measured}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
