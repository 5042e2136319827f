"""One trial: an acquisition inside a trial of Ray Tune.

A trial of one worker trains in its own process, which has the CPUs and GPUs and serves one trial
after another, so that torch is imported once. One of several workers only waits for those that Ray
Train places. What is reported at each checkpoint goes to Tune, which may stop the trial there.
After a crash of the driver the acquisition goes on from its own checkpoint, in the run folder that
bears the trial's id.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Stopped
from mla_ray.runtime.storage import at, read_json
from mla_ray.training.acquisition import acquire
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.driver import Driver
from mla_ray.training.loop import DONE
from mla_ray.training.run_spec import tables_key
from mla_ray.training.workers import Hooks, Workers, gpus_per_worker
from mla_ray.tuning.space import Space

METRIC = "best_AR"
TIME = "percent"
ENDED = "ended"
"""A file in the run folder of a trial that Tune has done with."""


@dataclass(frozen=True)
class Task:
    """What all trials of a language share."""

    native: str
    corpus: Corpus
    space: Space
    held_out: HeldOut
    root: str
    store: str
    workers: Workers
    skip_invalid: bool

    @property
    def alone(self) -> bool:
        """Whether a trial has one worker, and always will."""
        return self.workers.count == 1 and not self.workers.most

    def resources(self, cluster: Mapping[str, float]) -> dict[str, float]:
        """What Ray Tune sets aside for a trial on a cluster of these resources."""
        if not self.alone:  # it waits for its workers, which have the cores
            return {"CPU": 0, "memory": 5e8}
        gpus = gpus_per_worker(self.workers, cluster)
        cores = {"CPU": self.workers.cpus or 1, **self.workers.resources}
        return cores | ({"GPU": gpus} if gpus else {})

    def config(self, point: dict[str, Any]) -> AcquireConfig:
        captions = self.corpus.captions is not None
        return self.space.trial(point, captions=captions, held_out=self.held_out)

    def tables(self, native: Native, config: AcquireConfig) -> UPath:
        """Where the tables of these settings are: trials that differ in the rest share them."""
        return at(self.root) / "prepared" / tables_key(native, [self.corpus], config)


def run_trial(point: dict[str, Any], task: Task) -> None:
    """Ray Tune's trainable."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    run = at(task.root) / "trials" / tune.get_context().get_trial_id()
    if (run / DONE).exists():  # it had ended, but the driver was killed before Tune noted it
        figures = read_json(run / DONE)
        tune.report({METRIC: figures[METRIC], TIME: figures[TIME]})
        return
    config = task.config(point)
    if task.alone:
        driver = Driver(on_checkpoint=lambda figures, folder: tune.report(figures))
        hooks = Hooks(in_process=driver)
    else:  # the callback starts a process
        hooks = Hooks(callbacks=[TuneReportCallback()])
    with suppress(Stopped), ending(run) as stop:
        acquire(
            task.native,
            [task.corpus],
            config,
            run,
            store=task.store,
            resume=True,
            skip_invalid=task.skip_invalid,
            workers=Workers() if task.alone else task.workers,
            prepared=task.tables(Native.load(task.native), config),
            hooks=replace(hooks, stop=stop),
        )


@contextmanager
def ending(run: UPath) -> Iterator[threading.Event]:
    """An event that is set once Tune has done with the trial of this run folder.

    Tune may leave the process of a trial that it stopped alone, and then nobody tells Ray Train's
    controller and workers, which hold cores.
    """
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if (run / ENDED).exists():
                stop.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()
