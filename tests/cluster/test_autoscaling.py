"""A cluster grows by the nodes that a training or a sweep asks for, and shrinks when it is over."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mla_ray.training.config import Stage
from tests.cluster import scenes
from tests.cluster.drivers import CONFIG, starting
from tests.cluster.nodes import STOPPED, Nodes, nodes, wait_for
from tests.cluster.sweeps import TRIALS, finished

pytestmark = pytest.mark.cluster

SLOW = Stage(steps=1_000_000, batch=8, lr=1e-5)
ENDLESS = CONFIG.model_copy(
    update={"nlt": SLOW, "warmup": 0.0, "checkpoint_every": 50}
).model_dump()
"""It learns slowly, so that another order of sums still is a small difference after many steps."""


@pytest.fixture
def growing() -> Iterator[Nodes]:
    with nodes(grows={"CPU": 1, "trainer": 1}) as cluster:
        yield cluster


def test_nodes_come_for_a_training_and_go_after_it(
    growing: Nodes, job: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(growing.alive()) == 1
    with starting(growing, job, tmp_path_factory) as start:
        workers = {"count": 2, "cpus": 1, "resources": {"trainer": 1}}
        driver = start(tmp_path / "run", workers=workers)
        driver.until("two more nodes", lambda: len(growing.alive()) == 3)
        driver.finish()
    assert (driver.run / "packs" / "le" / "de" / "weights.safetensors").exists()
    wait_for("the idle nodes go", lambda: len(growing.alive()) == 1)


def test_an_elastic_training_has_the_losses_of_one_worker_whatever_nodes_come_and_go(
    job: dict[str, Any], tmp_path: Path
) -> None:
    found = scenes.workers(job | {"config": ENDLESS}, tmp_path)
    assert found["stopped"] == STOPPED
    steps = [row["step"] for row in found["rows"]]
    assert steps == list(range(10, steps[-1] + 1, 10)), "each step once"
    done = found["before"]
    assert done
    assert found["rows"][: len(done)] == done, "steps before the checkpoint were done again"
    assert [row["loss"] for row in found["rows"]] == pytest.approx(found["alone"], rel=1e-3)
    assert sum(found["alone"][-10:]) < 0.9 * sum(found["alone"][:10]), "it learned something"


def test_a_sweep_uses_the_room_of_the_nodes_that_come_for_it(
    job: dict[str, Any], tmp_path: Path
) -> None:
    scenes.trials(job, tmp_path)
    run = tmp_path / "run" / "de"
    trials = json.loads((run / "sweep.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["done"] * TRIALS
    assert len(finished(run)) == TRIALS
