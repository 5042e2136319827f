"""Search for the settings of one language with Ray Tune.

Optuna's TPE proposes settings, and ASHA stops poor trials early. After a kill, the same call
resumes the running trials and repeats no finished trial. Ray Tune pickles its state for this in the
run folder. Unpickling can run code, so use only run folders that you trust.
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
"""Maximum time in seconds to wait for the cores of the last trials."""


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
    """Run the trials of one language, or resume them.

    Args:
        spec: What all trials share.
        trials: Number of trials.
        first: First points of the search and the origin of each.
        concurrent: Maximum number of concurrent trials.
        seed: Seed of the proposals. The proposals also depend on the order in which trials end.
            Only `concurrent=1` is therefore reproducible.
        report: Receives the progress after each trial.
        stop: Stop request.

    Returns:
        The trials in start order.

    Raises:
        Stopped: The stop request was set. The same call resumes the search.

    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output ignores `verbose`
    from mla_ray.tuning.callback import trials_reported

    if is_local(
        as_path(spec.root)
    ):  # a sweep resumes from its last save, and the default interval is 10 seconds
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
    """Return the `Tuner` of a sweep. A started sweep is restored with its own searcher."""
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
            # Accelerate keeps its first precision in a process, so a varying one forbids reuse.
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
    """Return Optuna's TPE. A third of the trials, but at least four, are random first."""
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
    """Return an ASHA scheduler whose time is the percentage of a trial's steps."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr=TIME,
        max_t=100,
        grace_period=space.grace,
        reduction_factor=space.reduction,
        stop_last_trials=False,
    )


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """Return the parameters of a space as Optuna distributions, by name."""
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
    """Return how many trials fit on a cluster at the same time; at least one.

    Only the current resources count. For an autoscaling cluster, set the plan's `concurrent`.

    Args:
        workers: Workers of each trial.
        resources: Resources of the cluster, as from `ray.cluster_resources`.

    """
    trials = resources.get("CPU", 1) / ((workers.cpus or 1) * max(1, workers.count))
    if gpus := gpus_per_worker(workers, resources):
        trials = min(trials, resources.get("GPU", 0) / (gpus * max(1, workers.count)))
    return max(1, int(trials + 1e-6))


def free_cores() -> float:
    """Return the number of free CPUs of the Ray cluster."""
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


def _await_cores(count: float) -> None:
    """Wait until as many cores are free as before the trials, for at most `AWAITED_S` seconds.

    On a shared cluster, other jobs may have taken the cores.
    """
    end = time.monotonic() + AWAITED_S
    while free_cores() < count:
        if time.monotonic() > end:
            log.warning("fewer CPU cores are free than before the trials")
            return
        time.sleep(0.5)


def _trial_id(trial: Any) -> str:
    """Name a trial's folder by its id. Ray Tune's default contains the settings and may be long."""
    name: str = trial.trial_id
    return name


@contextmanager
def _interrupted(stop: threading.Event) -> Iterator[None]:
    """Send SIGINT to this process once `stop` is set, so that Ray Tune saves its state and ends.

    A Ray Tune `Stopper` is unsuitable: it terminates trials for good, and they cannot resume.
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
