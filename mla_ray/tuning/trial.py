"""One trial of a sweep: an acquisition inside a Ray Tune trial.

A trial with one worker trains in the process of the Ray Tune trial, which holds the CPUs and GPUs.
The process is reused for the next trials, so torch is imported only once. A trial with several
workers waits for the workers that Ray Train places. Ray Tune receives the metrics of each
checkpoint and may stop the trial there. After a crash of the driver, the acquisition resumes from
its own checkpoint in the run folder named after the trial's id.

Tables are prepared and features are encoded before the first trial. A trial therefore reads no
input table and loads the native only in the processes that train.
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
"""Name of the file that marks a trial as ended by Ray Tune, in the trial's run folder."""

Point = Mapping[str, Value]
"""Values of a space's parameters, by name."""


@dataclass(frozen=True)
class TrialSpec:
    """Data and settings that all trials of a language share.

    Attributes:
        run_spec: Spec of an acquisition of the corpus. Each trial replaces the settings in it.
        corpus: Tables that the language is acquired from.
        space: Search space.
        held_out: Validation rows.
        root: Folder of the sweep.
        store: Root of the feature stores.
        workers: Workers of each trial.

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
        """Whether a trial trains in its own process: one worker at most, and no elastic growth."""
        return self.workers.count < 2 and not self.workers.most

    def resources(self, cluster: Mapping[str, float]) -> dict[str, float]:
        """Return the resources that Ray Tune reserves for a trial on the given cluster."""
        if not self.in_process:  # the trial only waits, and its workers hold the cores
            return {"CPU": 0, "memory": 5e8}
        gpus = gpus_per_worker(self.workers, cluster)
        cores = {"CPU": self.workers.cpus or 1, **self.workers.resources}
        return cores | ({"GPU": gpus} if gpus else {})

    def config(self, point: Point) -> AcquireConfig:
        """Return the settings of a trial."""
        captions = self.corpus.captions is not None
        return self.space.trial(point, captions=captions, held_out=self.held_out)

    def spec_of(self, config: AcquireConfig) -> RunSpec:
        """Return the content of `run.json` for an acquisition with these settings."""
        return {**self.run_spec, "config": config.model_dump()}

    def tables(self, config: AcquireConfig) -> UPath:
        """Return the folder of the prepared tables for these settings.

        Trials that differ only in settings that do not affect the tables share a folder.
        """
        return as_path(self.root) / "prepared" / tables_key(self.spec_of(config))


def run_trial(point: dict[str, Value], spec: TrialSpec) -> None:
    """Run or resume one trial. This is the trainable for Ray Tune."""
    from ray import tune

    run = as_path(spec.root) / "trials" / tune.get_context().get_trial_id()
    if is_file(run / DONE):  # the driver was killed after the trial's end, before Tune saved it
        figures = read_json(run / DONE)
        tune.report({METRIC: figures[METRIC], TIME: figures[TIME]})
        return
    with suppress(Stopped), ended_by_tune(run) as stop:
        _train(spec, spec.config(point), run, stop)


def _train(spec: TrialSpec, config: AcquireConfig, run: UPath, stop: threading.Event) -> None:
    """Train both stages on the prepared tables and the stored features."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    check_corpora([spec.corpus], config, spec.workers)
    tables = spec.tables(config)
    write_json(run / RUN, spec.spec_of(config))
    job = job_of(run, as_path(spec.store), read_prepared(tables), tables)
    if spec.in_process:
        hooks = Hooks(stop=stop, on_checkpoint=lambda figures, folder: tune.report(figures))
        workers = Workers(0)
    else:  # only here, because the callback starts a process
        hooks, workers = Hooks(stop=stop, callbacks=[TuneReportCallback()]), spec.workers
    fit(train, job, workers, hooks.named(run.name))


@contextmanager
def ended_by_tune(run: UPath) -> Iterator[threading.Event]:
    """Yield an event that is set once Ray Tune has ended the trial of this run folder.

    Ray Tune may leave the process of a stopped trial running. Without this event, Ray Train's
    controller and workers would not notice the end and would keep their cores.
    """
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if (run / ENDED).exists():  # without retries: the next poll asks again
                stop.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        over.set()
