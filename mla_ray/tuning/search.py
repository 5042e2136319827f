"""Ray Tune for one language: Optuna's TPE proposes settings, ASHA stops the poor ones.

May be killed: the same call goes on with the trials that were under way and repeats none. What
Tune keeps for that is pickled in the run folder, so a run folder is to be trusted like a program.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mla_ray.runtime.progress import Report, Stopped
from mla_ray.runtime.storage import as_path, is_local, remove
from mla_ray.training.workers import Workers, gpus_per_worker
from mla_ray.tuning.outcome import Trial
from mla_ray.tuning.results import trials_of
from mla_ray.tuning.space import Choices, Range, Space
from mla_ray.tuning.trial import METRIC, TIME, Point, TrialSpec, run_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

AWAITED_S = 60.0


def search(
    spec: TrialSpec,
    *,
    trials: int,
    first: Sequence[tuple[str, Point]],
    concurrent: int,
    seed: int,
    report: Report,
    stop: threading.Event,
) -> list[Trial]:
    """Try settings; returns the trials in the order they were begun.

    Args:
        spec: what all of them share.
        trials: how many.
        first: points to begin with, and where they are from.
        concurrent: most at a time.
        seed: of the proposals. Which come first to an end decides what is proposed next, so that
            only one trial at a time gives the same sweep again.
        report: told of every end of a trial.
        stop: once set, `Stopped` is raised; the same call goes on.

    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one talks, whatever `verbose` says
    from mla_ray.tuning.callback import trials_reported

    if is_local(
        as_path(spec.root)
    ):  # else every 10 s: a sweep goes on from where it was saved last
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    points = [point for _, point in first[:trials]]
    tuner = _tuner(spec, _searcher(spec.space, points, trials, seed), trials, concurrent)
    cores = free_cores()
    phase = f"{spec.corpus.language} trials"
    with trials_reported(spec.root, phase, trials, report), _interrupted(stop):
        results = tuner.fit()
    if results.num_terminated + results.num_errors < trials:
        raise Stopped(f"{spec.root}: stopped; run the same again to go on")
    _await_cores(cores)
    remove(as_path(spec.root) / "trials")
    return trials_of(results, [origin for origin, _ in first])


def _tuner(spec: TrialSpec, searcher: Any, trials: int, concurrent: int) -> Any:
    """Tune's `Tuner` of a sweep: that in its folder if it has begun, which keeps its searcher."""
    import ray
    from ray import tune

    from mla_ray.tuning.callback import SweepCallback

    trainable = tune.with_resources(
        tune.with_parameters(run_trial, spec=spec), spec.resources(ray.cluster_resources())
    )
    folder = str(as_path(spec.root) / "tune")
    if tune.Tuner.can_restore(folder):
        return tune.Tuner.restore(folder, trainable)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=trials,
            max_concurrent_trials=concurrent,
            search_alg=searcher,
            scheduler=_scheduler(spec.space),
            trial_dirname_creator=_trial_id,
            # A process keeps the precision that Accelerate was set up with first.
            reuse_actors="precision" not in spec.space.parameters,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=spec.root,
            callbacks=[SweepCallback(spec.root)],
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )


def _searcher(space: Space, points: Sequence[Point], trials: int, seed: int) -> Any:
    """Optuna's TPE; the first third of the trials, or four, are random."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        distributions(space),
        metric=METRIC,
        mode="max",
        sampler=optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, trials // 3), constant_liar=True
        ),
        points_to_evaluate=[dict(point) for point in points],
    )


def _scheduler(space: Space) -> Any:
    """ASHA, over the percentage of a trial's steps."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr=TIME,
        max_t=100,
        grace_period=space.grace,
        reduction_factor=space.reduction,
        stop_last_trials=False,
    )


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """The space in Optuna's words."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def of(domain: Range | Choices) -> "BaseDistribution":
        if isinstance(domain, Choices):
            return CategoricalDistribution(domain.choices)
        if isinstance(domain.low, int) and isinstance(domain.high, int):
            return IntDistribution(domain.low, domain.high, log=domain.log)
        return FloatDistribution(domain.low, domain.high, log=domain.log)

    return {name: of(domain) for name, domain in space.parameters.items()}


def concurrent_trials(workers: Workers, resources: Mapping[str, float]) -> int:
    """Trials of so many workers each that a cluster of these resources has room for; at least one.

    One that is to grow has to be told with `concurrent`.
    """
    trials = resources.get("CPU", 1) / ((workers.cpus or 1) * max(1, workers.count))
    if gpus := gpus_per_worker(workers, resources):
        trials = min(trials, resources.get("GPU", 0) / (gpus * max(1, workers.count)))
    return max(1, int(trials + 1e-6))


def free_cores() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


def _await_cores(count: float) -> None:
    """Until the last trials have given theirs back; on a busy cluster others may take them."""
    end = time.monotonic() + AWAITED_S
    while free_cores() < count:
        if time.monotonic() > end:
            log.warning("fewer cores are free than before the trials")
            return
        time.sleep(0.5)


def _trial_id(trial: Any) -> str:
    """Folders by trial, not by settings: those may be long."""
    name: str = trial.trial_id
    return name


@contextmanager
def _interrupted(stop: threading.Event) -> Iterator[None]:
    """Interrupts Tune once `stop` is set: as by Ctrl-C, on which it saves its state.

    A `Stopper` of Tune's does not do: it ends trials for good, and none would go on later.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if stop.is_set():
                signal.raise_signal(signal.SIGINT)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
