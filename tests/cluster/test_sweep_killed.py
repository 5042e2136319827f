"""A sweep whose driver is killed on the way, and started again."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.cluster.nodes import family, kill, nodes, wait_for
from tests.support import ROOT

pytestmark = pytest.mark.cluster
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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_repeats_no_finished_trial(
    job: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    flags = ["--languages", "de", "--native", job["native"], "--pairs", job["pairs"]]
    flags += ["--captions", job["captions"], "--space", str(space), "--concurrent", "1"]
    flags += ["--workers", str(workers)]
    flags += ["--run", str(tmp_path / "run"), "--data", str(tmp_path / "data")]
    flags += ["--results", str(tmp_path / "results")]
    run = tmp_path / "run" / "de"
    with nodes(cpus=2) as cluster:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        with sweeping(flags, environment, tmp_path / "first.log") as first:
            wait_for(
                "two trials, and a third on its way",
                lambda: (
                    first.poll() is not None
                    or (
                        len(finished(run)) >= 2
                        and any(1 <= len(t) < 8 for t in looks(run).values())
                    )
                ),
                400,
            )
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            before, training = finished(run), cluster.train_workers()
            assert len(training) >= workers
            partly = {n: told for n, told in looks(run).items() if n not in before and told}
            first.kill()
        wait_for("its processes end", lambda: not any(process.is_running() for process in training))
        with sweeping(flags, environment, tmp_path / "second.log") as second:
            out, _ = second.communicate(timeout=600)
        assert second.returncode == 0, (tmp_path / "second.log").read_text()
    assert json.loads(out.splitlines()[-1])["de"]["language"] == "de"
    trials = json.loads((run / "sweep.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["done"] * TRIALS
    assert len(looks(run)) == TRIALS
    assert set(before) < {trial["id"] for trial in trials}
    for name, told in before.items():
        assert looks(run)[name] == told, "a finished trial was run again"
    for name, told in partly.items():  # it went on from its checkpoint: no look came again
        percents = [look["percent"] for look in looks(run)[name]]
        assert percents[: len(told)] == [look["percent"] for look in told]
        assert percents == sorted(set(percents))
