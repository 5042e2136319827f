"""Whatever ends a run, it goes on from its last checkpoint and leaves the very same pack.

On a Ray of several nodes: processes are killed, machines go away, storage refuses to be written.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.drivers import CONFIG, Start, starting
from tests.cluster.nodes import STOPPED, Driver, Nodes, kill, wait_for

pytestmark = pytest.mark.cluster

EVERY = CONFIG.checkpoint_every
SELDOM = CONFIG.model_copy(update={"checkpoint_every": CONFIG.nlt.steps}).model_dump()
"""Its weights are the same, but in the first stage no checkpoint is due."""


def weights(run: Path) -> bytes:
    return (run / "packs" / "le" / "de" / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(head: Nodes, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that an uninterrupted run leaves."""
    node = head.add(trainer=1)
    run = tmp_path_factory.mktemp("whole") / "run"
    with starting(head, job, tmp_path_factory) as start:
        start(run).finish()
    head.remove(node)
    return weights(run)


class Before:
    """What a run had written when something happened to it.

    A row of metrics tells how many texts a second there were: if its step is done again, it is
    another.
    """

    def __init__(self, driver: Driver) -> None:
        self.run = driver.run
        self.rows = driver.metrics()
        self.checkpoint = driver.checkpoints()[-1]
        assert self.checkpoint < CONFIG.nlt.steps, "it came too late"
        assert not (self.run / "packs" / "nlt").exists(), "it came too late"

    def resumed_from(self, driver: Driver, step: int | None = None) -> None:
        """Assert that up to `step`, or the last checkpoint, nothing was done twice."""
        step = step or self.checkpoint
        rows = [row for row in driver.metrics() if row["stage"] == "nlt"]
        assert [row["step"] for row in rows] == list(range(10, CONFIG.nlt.steps + 1, 10))
        done = [row for row in self.rows if row["step"] <= step]
        assert done
        assert rows[: len(done)] == done, "steps before the checkpoint were done again"


def test_a_killed_worker(cluster: Nodes, start: Start, expected: bytes, tmp_path: Path) -> None:
    cluster.add(trainer=1)
    driver = start(tmp_path / "run")
    driver.until("a checkpoint", driver.checkpoints)
    workers = cluster.train_workers()
    assert len(workers) == 1
    before = Before(driver)
    kill(workers)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_a_lost_node_while_another_has_room(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    lost, other = cluster.add(trainer=1), cluster.add(trainer=1)
    driver = start(tmp_path / "run")
    driver.until("a checkpoint", driver.checkpoints)
    if other.train_workers():
        lost, other = other, lost
    assert lost.train_workers()
    assert not other.train_workers()
    before = Before(driver)
    cluster.remove(lost)
    driver.until("a worker on the other node", other.train_workers)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_a_lost_node_of_two_that_train_together(
    cluster: Nodes, start: Start, tmp_path: Path
) -> None:
    together = {"count": 2, "cpus": 1, "resources": {"trainer": 1}}
    for _ in range(3):
        cluster.add(trainer=1)
    whole = start(tmp_path / "whole", workers=together)
    whole.finish()
    driver = start(tmp_path / "run", workers=together)
    driver.until("a checkpoint", driver.checkpoints)
    training = [node for node in cluster.nodes if node.train_workers()]
    assert len(training) == 2
    (spare,) = set(cluster.nodes[1:]) - set(training)
    before = Before(driver)
    cluster.remove(training[-1])
    driver.until("a worker on the spare node", spare.train_workers)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == weights(whole.run)


def test_a_killed_driver_that_is_started_again(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    cluster.add(trainer=1)
    driver = start(tmp_path / "run")
    driver.until("a checkpoint", driver.checkpoints)
    workers = cluster.train_workers()
    driver.signal(signal.SIGKILL)
    wait_for("its workers end", lambda: not any(worker.is_running() for worker in workers))
    before = Before(driver)
    driver = start(driver.run, resume=True)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    cluster.add(trainer=1)
    driver = start(tmp_path / "run")
    driver.until("two checkpoints", lambda: len(driver.checkpoints()) == 2)
    workers = cluster.train_workers()
    driver.signal(signal.SIGKILL)
    wait_for("its workers end", lambda: not any(worker.is_running() for worker in workers))
    before = Before(driver)
    *_, sound, newest = driver.checkpoints()
    folder = driver.run / "checkpoints" / f"{newest:010d}"
    (tensors,) = folder.glob("*.safetensors")
    with tensors.open("r+b") as file:
        file.truncate(tensors.stat().st_size // 2)
    driver = start(driver.run, resume=True)
    driver.finish()
    before.resumed_from(driver, sound)
    again = [row for row in before.rows if sound < row["step"] <= newest]
    assert again
    assert not any(row in again for row in driver.metrics()), "the torn checkpoint was used"
    assert weights(driver.run) == expected


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """A mount on `folder` for the body of a `with`."""
    if not mount(*arguments, str(folder)):
        pytest.skip("mount is not allowed here")
    try:
        yield
    finally:
        # Lazily: a file in there may just be open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_storage_that_is_read_only_for_a_while(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    cluster.add(trainer=1)
    driver = start(tmp_path / "run")
    driver.until("a checkpoint", driver.checkpoints)
    folder = driver.run / "checkpoints"
    with mounted(folder, "--bind", str(folder)):
        # Refused as long as a file in there is open for writing.
        wait_for("read-only", lambda: mount("-o", "remount,bind,ro", str(folder)))
        before = Before(driver)
        due = before.checkpoint + EVERY
        driver.until("a checkpoint is due", lambda: driver.reached(due))
        time.sleep(3)  # it is tried in vain
        assert driver.checkpoints()[-1] == before.checkpoint
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_storage_that_is_full_for_a_while(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    cluster.add(trainer=1)
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=16m", "tmpfs"):
        driver = start(disk / "run")
        driver.until("a checkpoint", driver.checkpoints)
        before = Before(driver)
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        time.sleep(5)  # nothing can be written
        assert driver.process.poll() is None, driver.output
        assert not (driver.run / "packs" / "le").exists(), "it came too late"
        (disk / "filler").unlink()
        driver.finish()
        before.resumed_from(driver)
        assert weights(driver.run) == expected


def test_a_notice_of_preemption_brings_a_checkpoint_and_another_node_goes_on(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    taken, other = cluster.add(trainer=1), cluster.add(trainer=1)
    driver = start(tmp_path / "run", config=SELDOM)
    driver.until("steps", lambda: driver.reached(100))
    if other.train_workers():
        taken, other = other, taken
    assert taken.train_workers()
    assert not driver.checkpoints()
    cluster.drain(taken, seconds=120)
    driver.until("a checkpoint that was not due", driver.checkpoints)
    before = Before(driver)
    cluster.remove(taken)
    driver.until("a worker on the other node", other.train_workers)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_a_driver_that_is_asked_to_end_saves_a_checkpoint_first(
    cluster: Nodes, start: Start, expected: bytes, tmp_path: Path
) -> None:
    cluster.add(trainer=1)
    driver = start(tmp_path / "run", config=SELDOM)
    driver.until("steps", lambda: driver.reached(100))
    assert not driver.checkpoints()
    assert driver.signal(signal.SIGTERM) == STOPPED, driver.output
    before = Before(driver)
    driver = start(driver.run, config=SELDOM, resume=True)
    driver.finish()
    before.resumed_from(driver)
    assert weights(driver.run) == expected


def test_training_grows_onto_a_new_node_and_goes_on_without_it(
    cluster: Nodes, start: Start, tmp_path: Path
) -> None:
    endless = CONFIG.model_copy(update={"nlt": CONFIG.nlt.model_copy(update={"steps": 1_000_000})})
    first = cluster.add(trainer=1)
    driver = start(
        tmp_path / "run",
        config=endless.model_dump(),
        workers={"count": 1, "most": 2, "cpus": 1, "resources": {"trainer": 1}},
    )

    def pids() -> list[set[int]]:
        return [{worker.pid for worker in node.train_workers()} for node in cluster.nodes[1:]]

    def another_checkpoint() -> None:
        newest = driver.checkpoints()[-1]
        driver.until(
            "another checkpoint", lambda: next(iter(driver.checkpoints()[-1:]), 0) > newest
        )

    driver.until("a checkpoint", driver.checkpoints)
    second = cluster.add(trainer=1)
    driver.until("a worker on each node", lambda: all(pids()))
    before = pids()
    another_checkpoint()
    assert pids() == before, "one of them gave up"
    cluster.remove(second)
    driver.until("one goes on alone", lambda: first.train_workers() and pids()[0] != before[0])
    another_checkpoint()
    assert driver.signal(signal.SIGTERM) == STOPPED, driver.output
