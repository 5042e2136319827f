"""Measure the cost of Ray Train: the same training in a Ray Train worker and in a plain process.

    python benchmarks/training.py [--steps 10000] [--batch 16] [--rounds 3] [--json training.json]

Both sides run `mla_ray.training.loop` from copies of one prepared run: NLT on the German emoji
tables with emoji-clip. One side uses `mla_ray.training.acquisition.acquire` with one worker, which
includes its monitor and a report to Ray at every checkpoint. The other side is called by a script
that never imports Ray. Batches are small, so that the overhead per step is visible beside the
matrix products. The sides take turns, and the first side changes every round. On a shared machine,
`--together` is fairer: both sides run at the same time, each with all its processes (including
Ray's) on its own core, and they swap cores every round.

The measured time is that between the metrics of step 10 and of the last step. TensorBoard's writer
in the training process adds the wall time to each event. The start-up and the last checkpoint are
therefore not included. The other checkpoints are (every 1,000 steps). Both sides run with
OMP_NUM_THREADS set to `--threads`, because Ray would otherwise set it to the worker's CPUs. Both
packs must be identical to the byte.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from mla_ray.data.corpus import Corpus
from mla_ray.datasets.emoji_tables import table_files
from mla_ray.model.native import Native
from mla_ray.runtime.console import bars, stderr, stdout
from mla_ray.runtime.storage import as_path, read_json
from mla_ray.training.acquisition import acquire, begin, encode, job_of
from mla_ray.training.acquisition_learner import train
from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.loop import DONE
from mla_ray.training.prepare import prepare, read_prepared
from mla_ray.training.workers import Workers

NATIVE, LANGUAGE = "emoji-clip", "de"
SIDES = ("plain", "ray")
FIRST = 10
"""First step for which metrics are written."""


def settings(steps: int, batch: int, checkpoint_every: int) -> AcquireConfig:
    """Return the settings of both sides: NLT only."""
    return AcquireConfig(
        nlt=Stage(steps=steps, batch=batch, lr=1e-3),
        le=Stage(steps=0, batch=batch, lr=3e-5),
        checkpoint_every=checkpoint_every,
    )


def make(scratch: Path, pairs: list[str], config: AcquireConfig) -> None:
    """Make the prepared run that both sides copy, and the features."""
    from mla_ray.runtime.cluster import ray_session

    native, corpus = Native.load(NATIVE), Corpus(LANGUAGE, pairs)
    run = as_path(scratch / "prepared")
    begin(native, [corpus], config, run, resume=False)
    prepare(native, [corpus], config, run)
    with ray_session():
        encode(native, [corpus], run, as_path(scratch / "features"), lambda progress: None)


def side(name: str, run: Path, store: Path, pairs: list[str], config: AcquireConfig) -> None:
    """Train one side in its own process."""
    if name == "plain":
        train(job_of(as_path(run), as_path(store), read_prepared(run)))
        assert "ray" not in sys.modules, "the plain side has imported Ray"  # noqa: S101
        return
    from mla_ray.runtime.cluster import ray_session

    with ray_session():
        acquire(
            NATIVE,
            [Corpus(LANGUAGE, pairs)],
            config,
            run,
            store=store,
            workers=Workers(1),
            resume=True,
        )


def seconds(run: Path, steps: int) -> float:
    """Return the seconds between the metrics of step `FIRST` and of the last step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    at_step = {event.step: event.wall_time for event in events.Scalars("nlt/loss")}
    return float(at_step[steps] - at_step[FIRST])


def weights(run: Path) -> str:
    """Return the SHA-256 of the weights of a run's pack."""
    pack = run / read_json(as_path(run / DONE))["packs"][LANGUAGE]
    return hashlib.sha256((pack / "weights.safetensors").read_bytes()).hexdigest()


def race(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run both sides in all rounds."""
    config = settings(args.steps, args.batch, args.checkpoint_every)
    with bars() as report:
        pairs = [str(file) for file in table_files(LANGUAGE, as_path(args.data), report)[1:]]
    make(scratch, pairs, config)
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    environment.pop("RAY_ADDRESS", None)
    rounds, ratios, packs = [], list[float](), set()
    for number in range(args.rounds):
        took: dict[str, dict[str, float]] = {}
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        started = {}
        for core, name in enumerate(order):
            run = scratch / name
            shutil.copytree(scratch / "prepared", run)
            command = [sys.executable, __file__, "--side", name, "--run", str(run)]
            command += ["--store", str(scratch / "features"), "--pairs", *pairs]
            for flag in ("steps", "batch", "checkpoint_every"):
                command += [f"--{flag.replace('_', '-')}", str(getattr(args, flag))]
            if args.together:
                command = ["taskset", "--cpu-list", str(core), *command]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            started[name] = process
            if not args.together:
                process.wait()
        for name, process in started.items():
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, process.args)
            run = scratch / name
            took[name] = {"loop": seconds(run, args.steps)}
            packs.add(weights(run))
            shutil.rmtree(run)
            stderr.print(f"round {number + 1}, {name}: {took[name]['loop']:.1f} s")
        ratios.append(took["ray"]["loop"] / took["plain"]["loop"])
        rounds.append(took | {"ratio": ratios[-1]})
    return {
        "steps": args.steps - FIRST,
        "batch": args.batch,
        "checkpoint_every": args.checkpoint_every,
        "threads": args.threads,
        "together": args.together,
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "same packs": len(packs) == 1,
    }


def show(result: dict[str, Any]) -> None:
    """Print the measurements as a table."""
    title = (
        f"{result['steps']:,} steps of NLT, batch {result['batch']}, {result['threads']} threads, "
        f"a checkpoint every {result['checkpoint_every']:,}"
    )
    head = ("round", "plain s", "ms a step", "Ray Train s", "ms a step", "ratio")
    table = Table(*head, title=title)
    for number, took in enumerate(result["rounds"], start=1):
        cells = []
        for name in SIDES:
            loop = took[name]["loop"]
            cells += [f"{loop:.2f}", f"{1e3 * loop / result['steps']:.2f}"]
        table.add_row(str(number), *cells, f"{took['ratio']:.3f}")
    stdout.print(table)
    low, high = result["range"]
    same = "the same packs to the byte" if result["same packs"] else "PACKS DIFFER"
    stdout.print(
        f"Ray Train / plain, median: {result['ratio']:.3f} ({low:.3f} to {high:.3f}); {same}"
    )


def main() -> None:
    """Parse the options and run the benchmark, or one side of it."""
    parser = argparse.ArgumentParser(description="Ray Train against the same loop without Ray.")
    defaults = {"steps": 10_000, "batch": 16, "rounds": 3, "checkpoint-every": 1_000}
    for name, default in {**defaults, "threads": os.cpu_count() or 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--together", action="store_true", help="run both sides at once, each on its own core"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the emoji data")
    parser.add_argument("--scratch", type=Path, help="folder for files (default: the system's)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        config = settings(args.steps, args.batch, args.checkpoint_every)
        side(args.side, args.run, args.store, args.pairs, config)
        return
    if args.steps <= FIRST:
        parser.error(f"--steps must be more than {FIRST}")
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mla-training-", dir=args.scratch) as scratch:
        result = race(args, Path(scratch))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
