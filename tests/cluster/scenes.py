"""What happens on a growing cluster, and how many nodes there are meanwhile.

Tests assert what a scene leaves; `benchmarks/nodes.py` draws it.
"""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster.application import Application, Replica
from tests.cluster.nodes import DEADLINE, Driver, Nodes, nodes
from tests.cluster.sweeps import flags_of, sweeping
from tests.support.load import Load

EVERY_S = 0.5
STEPS = 120
"""Steps to train between two events."""


class Watch:
    """Samples of a cluster over time: nodes, and what is `at_work` on them."""

    def __init__(self, cluster: Nodes, at_work: Callable[[], int]) -> None:
        self.cluster = cluster
        self.at_work = at_work
        self.began = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []
        self.events: list[tuple[float, str]] = []

    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def mark(self, event: str) -> None:
        self.events.append((self.seconds(), event))

    def until(
        self,
        event: str,
        happened: Callable[[], bool] = lambda: True,
        alive: int | None = None,
        running: int | None = None,
    ) -> None:
        """Wait for an event, for so many nodes and so much at work, whichever are given."""
        end = time.monotonic() + DEADLINE
        while True:
            sample = (self.seconds(), len(self.cluster.alive()), self.at_work())
            self.samples.append(sample)
            if alive in (None, sample[1]) and running in (None, sample[2]) and happened():
                return self.mark(event)
            if time.monotonic() > end:
                raise TimeoutError(f"not within {DEADLINE:.0f} s: {event}; last {sample}")
            time.sleep(EVERY_S)

    def figures(self) -> dict[str, Any]:
        return {"samples": self.samples, "events": self.events}


def encoders(
    args: dict[str, Any],
    node: dict[str, float],
    encoder: dict[str, float],
    stages: list[tuple[int, int]],
) -> dict[str, Any]:
    """Change the number of text encoders under searches that never stop.

    `stages` are numbers of text encoders, each with the number of nodes that come of it. In each,
    every encoder answers.
    """
    with nodes(cpus=3, grows=node, serves=True) as cluster:
        application = Application(cluster, args, encoder)
        application.deploy(stages[0][0])
        watch = Watch(cluster, lambda: len(application.encoders()))
        watch.until("served", application.settled, alive=stages[0][1])
        watch.began, watch.samples, watch.events = time.monotonic(), [], []
        with Load(application.url, ["en"]) as load:
            for asked, alive in stages[1:]:
                watch.mark(f"{asked} asked for")
                application.deploy(asked)
                if alive > len(cluster.alive()):
                    watch.until(f"{alive} nodes", alive=alive)
                watch.until(f"{asked} encoders", application.settled)
                watch.until(f"{alive} nodes", alive=alive)
                calls = {each: each.calls() for each in application.encoders()}
                assert {each.node for each in calls} <= cluster.alive()
                watch.until(f"{asked} answer", partial(all_answered, calls))
    return watch.figures() | {"searches": len(load.answers), "failed": load.failed}


def all_answered(calls: dict[Replica, int]) -> bool:
    """Whether each encoder has encoded more batches than so many."""
    return all(each.calls() > count for each, count in calls.items())


def workers(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train with 1 to 4 workers, kill a node, and train as many steps with one worker.

    The head has room for one worker, and so has each node that comes.
    """
    losses: list[tuple[float, int, float]] = []
    with nodes(cpus=1, grows={"CPU": 1}) as cluster, ExitStack() as stack:

        def train(name: str, **workers: int) -> Driver:
            (folder / f"{name}-driver").mkdir()
            task = job | {"run": str(folder / name), "workers": {"cpus": 1} | workers}
            driver = Driver(cluster, task, folder / f"{name}-driver")
            stack.callback(driver.stop)
            return driver

        driver = train("elastic", count=1, most=4)

        def at_work() -> int:
            assert driver.process.poll() in (None, 75), driver.output
            for row in driver.metrics()[-1:]:
                if not losses or losses[-1][1] != row["step"]:
                    losses.append((watch.seconds(), row["step"], row["loss"]))
            return len(cluster.train_workers())

        def trains_on(event: str, running: int) -> None:
            watch.until(f"{running} workers", running=running)
            before = losses[-1][1] if losses else 0
            watch.until(event, lambda: bool(losses) and losses[-1][1] > before)
            watch.until("", lambda: losses[-1][1] > before + STEPS)

        watch = Watch(cluster, at_work)
        watch.until("3 more nodes", alive=4)
        trains_on("a step of 4", 4)
        kept, before = driver.checkpoints()[-1], driver.metrics()
        lost = cluster.grown()[0]
        assert lost.train_workers()
        watch.mark("a node is killed")
        cluster.lose(lost)
        watch.until("the node is missed", lambda: lost.id not in cluster.alive())
        watch.until("another node", alive=4)
        trains_on("a step of 4 again", 4)
        watch.mark("stopped")
        stopped = driver.signal(signal.SIGTERM)
        watch.until("the head alone", alive=1)
        last = driver.metrics()[-1]["step"]
        alone = train("alone", count=1)
        alone.until("as many steps", lambda: alone.reached(last))
        alone.signal(signal.SIGTERM)
    return watch.figures() | {
        "stopped": stopped,
        "losses": losses,
        "before": [row for row in before if row["step"] <= kept],
        "rows": driver.metrics(),
        "alone": [row["loss"] for row in alone.metrics() if row["step"] <= last],
    }


def trials(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a sweep, three trials at a time, from a head with room for one."""
    with nodes(cpus=1, grows={"CPU": 1}) as cluster:
        flags = flags_of(job, folder, "--concurrent", "3")
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        with sweeping(flags, environment, folder / "sweep.log") as process:

            def at_work() -> int:
                assert not process.poll(), (folder / "sweep.log").read_text()
                return len(cluster.train_workers())

            watch = Watch(cluster, at_work)
            watch.until("a trial on each of three nodes", alive=3, running=3)
            watch.until("ended", lambda: process.poll() is not None)
        watch.until("the head alone", alive=1)
    return watch.figures()
