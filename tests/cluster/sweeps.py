"""Sweeps that tests run on a cluster, and what Tune was told of their trials."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.nodes import family, kill
from tests.support import ROOT

TRIALS = 4
SPACE = {
    "trials": TRIALS,
    "evaluations": 8,
    "grace": 100,  # so that no trial is stopped
    "settings": {
        "vocab_size": 400,
        "nlt": {"steps": 1500, "batch": 4, "lr": 1e-3},
        "le": {"steps": 100, "batch": 4, "lr": 1e-4},
    },
    "parameters": {"warmup": {"low": 0.0, "high": 0.5}},
}


@contextmanager
def sweeping(
    flags: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[str]]:
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "jobs.sweep", *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
        ) as process,
    ):
        try:
            yield process
        finally:
            kill(family(psutil.Process(process.pid)) if process.poll() is None else [])


def looks(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What Tune was told of each trial, by its id."""
    return {
        file.parent.name: [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(run.glob("tune/*/result.json"))
    }


def finished(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: told for name, told in looks(run).items() if told and told[-1]["percent"] == 100}


def flags_of(job: dict[str, Any], folder: Path, *more: str) -> list[str]:
    """What a sweep of German with this data is called with; it keeps everything in `folder`."""
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    flags = ["--languages", "de", "--native", job["native"], "--pairs", job["pairs"]]
    flags += ["--captions", job["captions"]] if job["captions"] else []
    flags += ["--space", str(space)]
    flags += ["--run", str(folder / "run"), "--data", str(folder / "data")]
    return [*flags, "--results", str(folder / "results"), *more]
