"""Compare a sweep with its trials run to the end, one after another.

    python benchmarks/sweep.py [--language cs] [--space FILE] [--trials 16] [--full N]
                               [--json sweep.json]

The default space is benchmarks/sweep.yaml. The benchmark first runs the search of `mla sweep` on
the language's emoji: it makes tables and features, and runs concurrent trials that ASHA may stop.

It then runs the settings of each trial without a sweep, with
`mla_ray.training.acquisition.acquire` and all cores. Each of these runs makes its own tables and
features and has the same evaluations on validation rows. Both parts use the same Ray session. Its
start and the drawing of the emoji are not timed.

With --full N, only N of these runs are executed, evenly spread over the numbers of steps. A linear
fit over the steps estimates the time of the others. The cost of features is measured separately, so
the result also has the ratio for runs that share features. The table has the AR of each trial in
the sweep and in full.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mla_ray.datasets.emoji_tables import table_files
from mla_ray.model.native import Native
from mla_ray.runtime.cluster import ray_session
from mla_ray.runtime.console import bars, stdout
from mla_ray.runtime.progress import Report
from mla_ray.runtime.storage import as_path, read_json
from mla_ray.training.acquisition import acquire, encode
from mla_ray.training.prepare import prepare
from mla_ray.training.workers import Hooks
from mla_ray.tuning.language_sweep import LanguageSweep
from mla_ray.tuning.outcome import Trial
from mla_ray.tuning.plan import SweepPlan
from mla_ray.tuning.trial import TrialSpec

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""


@dataclass(frozen=True)
class FullRun:
    """A trial's settings run to the end: total seconds, seconds for features, and best AR."""

    number: int
    seconds: float
    features: float
    ar: float


def run(args: argparse.Namespace, scratch: Path) -> Figures:
    """Run the sweep and then its trials in full."""
    with bars() as report:
        table_files(args.language, as_path(args.data), report)
        shutil.copytree(args.data / "emoji", scratch / "data" / "emoji")
        if (args.data / "lexicons").exists():
            shutil.copytree(args.data / "lexicons", scratch / "data" / "lexicons")
        plan = SweepPlan(
            languages=[args.language],
            dataset="emoji",
            space=args.space,
            trials=args.trials,
            run=str(scratch / "sweep"),
            data=str(scratch / "data"),
            results=str(scratch / "results"),
        )
        native = Native.load(plan.native)
        with ray_session(dashboard=True):
            began = time.perf_counter()
            sweep = LanguageSweep.open(plan, args.language, native, report, threading.Event())
            spec = sweep.trial_spec()
            trials = sweep.search(spec)
            swept = time.perf_counter() - began
            full = [
                run_in_full(native, spec, trial, scratch / "full", report)
                for trial in chosen(trials, args.full)
            ]
    return {"language": args.language, **compared(trials, full, swept)}


def run_in_full(
    native: Native, spec: TrialSpec, trial: Trial, folder: Path, report: Report
) -> FullRun:
    """Run a trial's settings without a sweep in an empty folder, and delete the folder."""
    config, run = spec.config(trial.settings), as_path(folder)
    began = time.perf_counter()
    prepare(native, [spec.corpus], config, run)
    before = time.perf_counter()
    encode(native, [spec.corpus], run, run / "features", report)
    features = time.perf_counter() - before
    acquire(
        native.name,
        [spec.corpus],
        config,
        run,
        store=run / "features",
        resume=True,
        hooks=Hooks(report=report),
    )
    seconds = time.perf_counter() - began
    ar = read_json(run / "done.json")["best_AR"]
    shutil.rmtree(folder)
    return FullRun(trial.number, seconds, features, ar)


def compared(trials: list[Trial], full: list[FullRun], swept: float) -> Figures:
    """Return the seconds of the sweep and of all its trials in full, and each trial's AR."""
    measured = {run.number: run.seconds for run in full}
    steps = {trial.number: float(trial.settings["steps"]) for trial in trials}
    slope, start = np.polyfit([steps[n] for n in measured], list(measured.values()), 1)
    alone = sum(measured.get(n, start + slope * steps[n]) for n in steps)
    features = sum(run.features for run in full) * len(trials) / len(full)
    by_number = {
        run.number: {"number": run.number, "seconds": run.seconds, "ar": run.ar} for run in full
    }
    return {
        "sweep_s": swept,
        "alone_s": alone,
        "features_s": features,
        "ratio": swept / alone,
        "ratio_with_features_shared": swept / (alone - features * (1 - 1 / len(trials))),
        "trials": [
            {**trial.model_dump(exclude={"curve"}), "full": by_number.get(trial.number)}
            for trial in trials
        ],
    }


def chosen(trials: list[Trial], count: int | None) -> list[Trial]:
    """Choose `count` trials, evenly spread over their numbers of steps, or all for None."""
    if count is None or count >= len(trials):
        return trials
    ordered = sorted(trials, key=lambda trial: float(trial.settings["steps"]))
    places = np.linspace(0, len(ordered) - 1, max(2, count)).round().astype(int)
    return [ordered[place] for place in places]


def show(result: Figures) -> None:
    """Print the measurements."""
    table = Table(title=f"{len(result['trials'])} trials, {result['language']}")
    for column in ("trial", "status", "%", "AR", "s", "full: AR", "s"):
        table.add_column(column, justify="right")
    for trial in result["trials"]:
        ar = "" if trial["ar"] is None else f"{trial['ar']:.2f}"
        full = trial["full"]
        cells = [trial["number"], trial["status"], trial["percent"], ar, f"{trial['seconds']:.0f}"]
        whole = [f"{full['ar']:.2f}", f"{full['seconds']:.0f}"] if full else ["", ""]
        table.add_row(*map(str, cells), *whole)
    stdout.print(table)
    stdout.print(
        f"sweep {result['sweep_s']:.0f} s, one after another {result['alone_s']:.0f} s (of that "
        f"features {result['features_s']:.0f} s): ratio {result['ratio']:.3f}; with features "
        f"shared by both {result['ratio_with_features_shared']:.3f}"
    )


def main() -> None:
    """Parse the options and run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language", default="cs")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--space", default="benchmarks/sweep.yaml")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--full", type=int, help="number of trials to run in full (default: all)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mla-sweep-") as scratch:
        result = run(args, Path(scratch))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
