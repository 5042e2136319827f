"""One trial: an acquisition inside a trial of Ray Tune.

A trial of one worker trains in its own process, which has the CPUs and GPUs and serves one trial
after another, so that torch is imported once. One of several workers only waits for those that Ray
Train places. What is reported at each checkpoint goes to Tune, which may stop the trial there.
After a crash of the driver the acquisition goes on from its own checkpoint, in the run folder that
bears the trial's id.

Tables are prepared and features are encoded before the first trial, so a trial reads no input
table, and loads the native where it trains and nowhere else.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from upath import UPath

from mla_ray.data.corpus import Corpus
from mla_ray.runtime.progress import Stopped
from mla_ray.runtime.storage import as_path, is_file, read_json, write_json
from mla_ray.training.acquisition import check_corpora, job_of
from mla_ray.training.acquisition_learner import train
from mla_ray.training.config import AcquireConfig, HeldOut
from mla_ray.training.loop import DONE
from mla_ray.training.prepare import read_prepared
from mla_ray.training.run_spec import RUN, RunSpec, tables_key
from mla_ray.training.workers import Hooks, Workers, fit, gpus_per_worker
from mla_ray.tuning.outcome import Value
from mla_ray.tuning.space import Space

METRIC = "best_AR"
TIME = "percent"
ENDED = "ended"
"""A file in the run folder of a trial that Tune has done with."""

Point = Mapping[str, Value]
"""Values of a space's parameters, by name."""


@dataclass(frozen=True)
class TrialSpec:
    """What all trials of a language share.

    Attributes:
        run_spec: of an acquisition of the corpus; each trial has settings of its own in it.
        corpus: what the language is acquired from.
        space: what the trials vary.
        held_out: rows that settings are chosen by.
        root: the sweep's folder.
        store: root of the feature stores.
        workers: of a trial.

    """

    run_spec: RunSpec
    corpus: Corpus
    space: Space
    held_out: HeldOut
    root: str
    store: str
    workers: Workers

    @property
    def in_process(self) -> bool:
        """Whether a trial has one worker, and always will."""
        return self.workers.count < 2 and not self.workers.most

    def resources(self, cluster: Mapping[str, float]) -> dict[str, float]:
        """What Ray Tune sets aside for a trial on a cluster of these resources."""
        if not self.in_process:  # it waits for its workers, which have the cores
            return {"CPU": 0, "memory": 5e8}
        gpus = gpus_per_worker(self.workers, cluster)
        cores = {"CPU": self.workers.cpus or 1, **self.workers.resources}
        return cores | ({"GPU": gpus} if gpus else {})

    def config(self, point: Point) -> AcquireConfig:
        """The settings of a trial."""
        captions = self.corpus.captions is not None
        return self.space.trial(point, captions=captions, held_out=self.held_out)

    def spec_of(self, config: AcquireConfig) -> RunSpec:
        """The run.json of an acquisition of the corpus by these settings."""
        return {**self.run_spec, "config": config.model_dump()}

    def tables(self, config: AcquireConfig) -> UPath:
        """Where the tables of these settings are: trials that differ in the rest share them."""
        return as_path(self.root) / "prepared" / tables_key(self.spec_of(config))


def run_trial(point: dict[str, Value], spec: TrialSpec) -> None:
    """Ray Tune's trainable."""
    from ray import tune

    run = as_path(spec.root) / "trials" / tune.get_context().get_trial_id()
    if is_file(run / DONE):  # it had ended, but the driver was killed before Tune noted it
        figures = read_json(run / DONE)
        tune.report({METRIC: figures[METRIC], TIME: figures[TIME]})
        return
    with suppress(Stopped), ended_by_tune(run) as stop:
        _train(spec, spec.config(point), run, stop)


def _train(spec: TrialSpec, config: AcquireConfig, run: UPath, stop: threading.Event) -> None:
    """Both stages on tables that are prepared, and features that are there."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    check_corpora([spec.corpus], config, spec.workers)
    tables = spec.tables(config)
    write_json(run / RUN, spec.spec_of(config))
    job = job_of(run, as_path(spec.store), read_prepared(tables), tables)
    if spec.in_process:
        hooks = Hooks(stop=stop, on_checkpoint=lambda figures, folder: tune.report(figures))
        workers = Workers(0)
    else:  # the callback starts a process
        hooks, workers = Hooks(stop=stop, callbacks=[TuneReportCallback()]), spec.workers
    fit(train, job, workers, hooks.named(run.name))


@contextmanager
def ended_by_tune(run: UPath) -> Iterator[threading.Event]:
    """An event that is set once Tune has done with the trial of this run folder.

    Tune may leave the process of a trial that it stopped alone, and then nobody tells Ray Train's
    controller and workers, which hold cores.
    """
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if (run / ENDED).exists():  # not waited for, if storage is away: it is asked again
                stop.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()
