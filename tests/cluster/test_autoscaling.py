"""A cluster grows by the nodes that a training or a sweep asks for, and shrinks when it is over."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mla_ray.training.config import Stage
from tests.cluster.drivers import CONFIG, starting
from tests.cluster.nodes import STOPPED, Driver, Nodes, nodes, wait_for
from tests.cluster.sweeps import TRIALS, finished, flags_of, sweeping

pytestmark = pytest.mark.cluster

SLOW = Stage(steps=1_000_000, batch=8, lr=1e-5)
ENDLESS = CONFIG.model_copy(update={"nlt": SLOW, "warmup": 0.0}).model_dump()
"""It learns slowly, so that another order of sums still is a small difference after many steps."""


@pytest.fixture
def growing() -> Iterator[Nodes]:
    with nodes(grows={"CPU": 1, "trainer": 1}) as cluster:
        yield cluster


@pytest.fixture
def narrow() -> Iterator[Nodes]:
    """A head with room for one worker or trial, and as much on each node that comes."""
    with nodes(cpus=1, grows={"CPU": 1}) as cluster:
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


def another_checkpoint(driver: Driver) -> None:
    newest = max(driver.checkpoints(), default=0)
    driver.until("another checkpoint", lambda: max(driver.checkpoints(), default=0) > newest)


def test_an_elastic_training_has_the_losses_of_one_worker_whatever_nodes_come_and_go(
    narrow: Nodes, job: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with starting(narrow, job, tmp_path_factory) as start:
        elastic = {"count": 1, "most": 4, "cpus": 1}  # --workers 1:4
        driver = start(tmp_path / "elastic", config=ENDLESS, workers=elastic)
        driver.until("a worker", lambda: len(narrow.train_workers()) == 1)
        driver.until("three more nodes", lambda: len(narrow.alive()) == 4)
        driver.until("four workers", lambda: len(narrow.train_workers()) == 4)
        another_checkpoint(driver)
        before, kept = driver.metrics(), driver.checkpoints()[-1]
        (lost, *_) = narrow.grown()
        assert lost.train_workers()
        narrow.lose(lost)
        driver.until("the node is missed", lambda: lost.id not in narrow.alive())
        driver.until("another in its place", lambda: len(narrow.alive()) == 4)
        driver.until("four workers again", lambda: len(narrow.train_workers()) == 4)
        another_checkpoint(driver)
        assert driver.signal(signal.SIGTERM) == STOPPED, driver.output
        rows = driver.metrics()
        steps = [row["step"] for row in rows]
        assert steps == list(range(10, steps[-1] + 1, 10)), "each step once"
        done = [row for row in before if row["step"] <= kept]
        assert done
        assert rows[: len(done)] == done, "steps before the checkpoint were done again"
        wait_for("the idle nodes go", lambda: len(narrow.alive()) == 1)

        alone = start(tmp_path / "alone", config=ENDLESS, workers={"count": 1, "cpus": 1})
        alone.until("as many steps", lambda: alone.reached(steps[-1]))
        assert alone.signal(signal.SIGTERM) == STOPPED, alone.output
    expected = [row["loss"] for row in alone.metrics()[: len(rows)]]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-3)
    assert sum(expected[-10:]) < 0.9 * sum(expected[:10]), "it learned something"


def test_a_sweep_uses_the_room_of_the_nodes_that_come_for_it(
    narrow: Nodes, job: dict[str, Any], tmp_path: Path
) -> None:
    flags = flags_of(job, tmp_path, "--concurrent", "3")
    environment = narrow.environment | {"RAY_ADDRESS": narrow.address}
    log = tmp_path / "sweep.log"
    with sweeping(flags, environment, log) as process:

        def on_three_nodes() -> bool:
            assert process.poll() is None, log.read_text()
            grown = [node.train_workers() for node in narrow.grown()]
            return len([trials for trials in grown if trials]) == 2 < len(narrow.train_workers())

        wait_for("a trial on each of three nodes", on_three_nodes)
        process.communicate(timeout=600)
    assert process.returncode == 0, log.read_text()
    trials = json.loads((tmp_path / "run" / "de" / "sweep.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["done"] * TRIALS
    assert len(finished(tmp_path / "run" / "de")) == TRIALS
    wait_for("the idle nodes go", lambda: len(narrow.alive()) == 1)
