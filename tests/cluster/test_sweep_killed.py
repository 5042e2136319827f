"""A sweep whose driver is killed on the way, and started again."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.nodes import nodes, wait_for
from tests.cluster.sweeps import TRIALS, finished, flags_of, looks, sweeping

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_driver_repeats_no_finished_trial(
    job: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    flags = flags_of(job, tmp_path, "--concurrent", "1", "--workers", str(workers))
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
