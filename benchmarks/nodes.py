"""Record how nodes follow the work on Ray's fake cloud, and draw it.

    python -m benchmarks.nodes [encoders] [workers] [trials] [--json nodes.json] [--out nodes.png]

The cluster is that of tests/cluster: raylets on this machine, which Ray's autoscaler adds and
removes as it does machines. It looks every second, and a node goes after 6 idle seconds. A fake
node takes no time to boot. Each has room for one text encoder, training worker or trial. The native
is tiny, so what takes time is the start of processes.

- *encoders*: `serve/config.yaml` with 1, 2, 3 and again 1 text encoder, under constant searches.
- *workers*: a training with `--workers 1:4`. One node is killed on the way. Its losses are compared
  with those of one worker.
- *trials*: a sweep with `--concurrent 3`.

With `--draw nodes.json` earlier figures are drawn again.
"""

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.memory import save_tiny, translation, write_pairs
from mla_ray.reproduce.plot import INK, SOFT
from mla_ray.training.config import AcquireConfig, Stage
from tests.cluster.application import Application
from tests.cluster.nodes import Driver, Nodes, nodes
from tests.cluster.sweeps import flags_of, sweeping
from tests.support.load import Load

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

EVERY_S = 0.5
NODES = "#d55e00"
ROOM = {"CPU": 1}
"""What a node of the fake cloud has."""
SETTINGS = AcquireConfig(
    nlt=Stage(steps=1_000_000, batch=32, lr=1e-4),
    le=Stage(steps=0, batch=32, lr=1e-4),
    vocab_size=1000,
    warmup=0,
    checkpoint_every=100,
)


class Watch:
    """Samples of a cluster over time: nodes, and what is at work on them.

    Args:
        cluster: Cluster to watch.
        at_work: Returns the number of encoders, workers or trials.

    """

    def __init__(self, cluster: Nodes, at_work: Callable[[], int]) -> None:
        self.cluster = cluster
        self.at_work = at_work
        self.began = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []
        self.events: list[tuple[float, str]] = []

    def seconds(self) -> float:
        """Return the time since the start."""
        return round(time.monotonic() - self.began, 1)

    def mark(self, event: str) -> None:
        """Record that something happened now."""
        self.events.append((self.seconds(), event))

    def until(self, event: str, happened: Callable[[int, int], bool]) -> None:
        """Sample until `happened(nodes, at work)`, and record this as an event.

        Raises:
            TimeoutError: It did not happen within ten minutes.

        """
        end = time.monotonic() + 600
        while True:
            sample = (self.seconds(), len(self.cluster.alive()), self.at_work())
            self.samples.append(sample)
            if happened(*sample[1:]):
                return self.mark(event)
            if time.monotonic() > end:
                raise TimeoutError(f"not within ten minutes: {event}; last sample {sample}")
            time.sleep(EVERY_S)

    def figures(self) -> Figures:
        """Return what was recorded."""
        return {"samples": self.samples, "events": self.events}


def are_alive(nodes: int) -> Callable[[int, int], bool]:
    """Return the condition that so many nodes are alive."""
    return lambda alive, running: alive == nodes


# --- the scenes ----------------------------------------------------------------------------------


def encoders(scratch: Path, job: Figures) -> Figures:
    """Scale text encoders up and down under load."""
    folders = {name: str(scratch / name) for name in ("packs", "pictures")}
    args = {"native": job["native"], "index": f"edge:{scratch / 'index'}", **folders}
    Path(folders["packs"]).mkdir()
    with nodes(cpus=3, grows=ROOM, serves=True) as cluster:
        application = Application(cluster, args, {"num_cpus": 1})
        application.deploy(1)
        Watch(cluster, lambda: len(application.encoders())).until(
            "served", lambda count, running: application.settled()
        )
        with Load(application.url, ["en"]) as load:
            watch = Watch(cluster, lambda: len(application.encoders()))
            for asked in (2, 3, 1):
                watch.mark(f"{asked} asked for")
                application.deploy(asked)
                watch.until(f"{asked} nodes", are_alive(asked))
                watch.until(f"{asked} encoders", lambda count, running: application.settled())
    return watch.figures() | {"searches": len(load.answers), "failed": len(load.failed)}


def workers(scratch: Path, job: Figures) -> Figures:
    """Train with 1 to 4 workers, kill a node, and train as many steps with one worker."""
    losses: list[tuple[float, int, float]] = []
    with nodes(cpus=1, grows=ROOM) as cluster:
        elastic = {"count": 1, "most": 4, "cpus": 1}
        with training(cluster, job, scratch / "elastic", elastic) as driver:

            def at_work() -> int:
                """Count the workers, and record the loss of the last step."""
                for row in driver.metrics()[-1:]:
                    if not losses or losses[-1][1] != row["step"]:
                        losses.append((watch.seconds(), row["step"], row["loss"]))
                return len(cluster.train_workers())

            def trains_on(count: int) -> None:
                """Wait for workers at work, and then for some steps of theirs."""
                watch.until(f"{count} workers", lambda _, running: running == count)
                before = len(losses)
                watch.until(f"a step of {count}", lambda *_: len(losses) > before)
                watch.until("", lambda *_: len(losses) > before + 20)

            watch = Watch(cluster, at_work)
            trains_on(1)
            watch.until("4 nodes", are_alive(4))
            trains_on(4)
            watch.mark("a node is killed")
            cluster.lose(cluster.grown()[0])
            watch.until("3 nodes", are_alive(3))
            watch.until("4 nodes", are_alive(4))
            trains_on(4)
            driver.signal(signal.SIGTERM)
            watch.mark("stopped")
        watch.until("1 node", are_alive(1))
        last = driver.metrics()[-1]["step"]
        with training(cluster, job, scratch / "alone", {"count": 0}) as alone:
            alone.until("as many steps", lambda: alone.reached(last))
            alone.signal(signal.SIGTERM)
    one = {row["step"]: row["loss"] for row in alone.metrics()}
    return watch.figures() | {
        "losses": losses,
        "one worker": [one[step] for _, step, _ in losses],
        "steps": last,
        "largest relative difference of losses": max(
            abs(row["loss"] / one[row["step"]] - 1) for row in driver.metrics()
        ),
    }


@contextmanager
def training(cluster: Nodes, job: Figures, run: Path, workers: Figures) -> Iterator[Driver]:
    """Train on a cluster, until it is stopped or the context ends."""
    folder = run.with_name(f"{run.name}-driver")
    folder.mkdir()
    driver = Driver(cluster, job | {"run": str(run), "workers": workers}, folder)
    try:
        yield driver
    finally:
        driver.stop()


def trials(scratch: Path, job: Figures) -> Figures:
    """Run a sweep of four trials, three at a time."""
    with nodes(cpus=1, grows=ROOM) as cluster:
        flags = flags_of(job, scratch, "--concurrent", "3")
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        with sweeping(flags, environment, scratch / "sweep.log") as process:
            watch = Watch(cluster, lambda: len(cluster.train_workers()))
            watch.until("first trial", lambda alive, running: running > 0)
            watch.until("3 nodes", are_alive(3))
            watch.until("3 trials", lambda alive, running: running == 3)
            watch.until("ended", lambda alive, running: process.poll() is not None)
        watch.until("1 node", are_alive(1))
    if process.returncode:
        raise SystemExit((scratch / "sweep.log").read_text())
    return watch.figures()


SCENES = {"encoders": encoders, "workers": workers, "trials": trials}

# --- the picture ---------------------------------------------------------------------------------


def draw(found: Figures) -> Figure:
    """Draw a panel for each scene, and the losses below the workers."""
    picture = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(2, 2)
    titles = {
        "encoders": "Serving: 2, 3, then 1 text encoder asked for",
        "workers": "Training with --workers 1:4; a node is killed",
        "trials": "A sweep with --concurrent 3",
    }
    for axis, (scene, title) in zip(axes.flat, titles.items(), strict=False):
        axis.set_title(title, fontsize=11)
        if scene in found:
            _steps(axis, found[scene], scene)
    _losses(axes[1, 1], found.get("workers", {}))
    for axis in axes.flat:
        axis.set_xlabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#e5e7ea", linewidth=0.7)
        axis.set_axisbelow(True)
    return picture


def _steps(axis: Axes, scene: Figures, name: str) -> None:
    seconds, alive, running = zip(*scene["samples"], strict=True)
    axis.fill_between(seconds, alive, step="post", color=NODES, alpha=0.2, label="nodes", lw=0)
    axis.step(seconds, running, where="post", color=INK, label=name)
    axis.set_yticks(range(max(*alive, *running) + 1))
    axis.set_ylim(0, max(*alive, *running) + 0.9)
    for at, event in scene["events"]:
        if "asked" in event or "killed" in event:
            axis.axvline(at, color=SOFT, linewidth=1, linestyle=":")
            axis.annotate(event, (at, axis.get_ylim()[1]), (3, -3), textcoords="offset points",
                          fontsize=8, color=SOFT, va="top")  # fmt: skip
    axis.legend(frameon=False, loc="lower right", fontsize=9)


def _losses(axis: Axes, scene: Figures) -> None:
    axis.set_title("Its loss, and that of one worker at the same step", fontsize=11)
    if not scene:
        return
    seconds, _, losses = zip(*scene["losses"], strict=True)
    axis.plot(seconds, losses, color=INK, label="1 to 4 workers")
    axis.plot(seconds, scene["one worker"], "--", color=NODES, label="one worker", linewidth=1)
    axis.legend(frameon=False, fontsize=9)


def main() -> None:
    """Record the scenes, or read them, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], default=[])
    parser.add_argument("--json", type=Path, default=Path("nodes.json"))
    parser.add_argument("--draw", type=Path, help="a JSON file of before")
    parser.add_argument("--out", type=Path, default=Path("nodes.png"))
    given = parser.parse_args()
    found: Figures = json.loads(given.draw.read_text()) if given.draw else {}
    if not given.draw:
        with tempfile.TemporaryDirectory(prefix="mla-nodes-") as folder:
            words = [translation(number) for number in range(1000)]
            save_tiny(Path(folder) / "tiny-clip", words)
            write_pairs(Path(folder) / "pairs.parquet", words, 2000)
            job = {
                "native": f"{folder}/tiny-clip",
                "language": "de",
                "pairs": f"{folder}/pairs.parquet",
                "captions": None,
                "config": SETTINGS.model_dump(),
                "store": f"{folder}/features",
                "resume": False,
            }
            for name in given.scenes or SCENES:
                scratch = Path(folder) / name
                scratch.mkdir()
                found[name] = SCENES[name](scratch, job)
                given.json.write_text(json.dumps(found) + "\n")
                print(name, json.dumps({k: v for k, v in found[name].items() if k != "samples"}))
    draw(found).savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
