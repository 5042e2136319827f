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
from pathlib import PurePosixPath
from typing import Any

from mla_ray.runtime.progress import Report, Stopped
from mla_ray.runtime.storage import at, is_local, remove
from mla_ray.tuning.outcome import Status, Trial, Value
from mla_ray.tuning.space import Choices, Range, Space
from mla_ray.tuning.trial import METRIC, TIME, Task, run_trial

log = logging.getLogger(__name__)

AWAITED_S = 60.0


def search(
    task: Task,
    *,
    trials: int,
    first: Sequence[tuple[str, Mapping[str, Value]]],
    concurrent: int,
    seed: int,
    report: Report,
    stop: threading.Event,
) -> list[Trial]:
    """Try settings; returns the trials in the order they were begun.

    Args:
        task: what all of them share.
        trials: how many.
        first: points to begin with, and where they are from.
        concurrent: most at a time.
        seed: of the proposals. Which come first to an end decides what is proposed next, so that
            only one trial at a time gives the same sweep again.
        report: told of every end of a trial.
        stop: once set, `Stopped` is raised; the same call goes on.

    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one talks, whatever `verbose` says
    import optuna
    import ray
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search.optuna import OptunaSearch

    from mla_ray.tuning.listening import Listener, listening

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if is_local(at(task.root)):  # else every 10 s: a sweep goes on from where it was saved last
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    folder = str(at(task.root) / "tune")
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, task=task), task.resources(ray.cluster_resources())
    )
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable)
    else:
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, trials // 3), constant_liar=True
        )
        space = task.space
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=trials,
                max_concurrent_trials=concurrent,
                search_alg=OptunaSearch(
                    distributions(space),
                    metric=METRIC,
                    mode="max",
                    sampler=sampler,
                    points_to_evaluate=[dict(point) for _, point in first[:trials]],
                ),
                scheduler=AsyncHyperBandScheduler(
                    time_attr=TIME,
                    max_t=100,
                    grace_period=space.grace,
                    reduction_factor=space.reduction,
                    stop_last_trials=False,
                ),
                trial_dirname_creator=_id,
                # A process keeps the precision that Accelerate was set up with first.
                reuse_actors="precision" not in space.parameters,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=task.root,
                callbacks=[Listener(task.root)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
    cores = free_cores()
    with listening(task.root, f"{task.corpus.language} trials", trials, report), _ending(stop):
        results = tuner.fit()
    if results.num_terminated + results.num_errors < trials:
        raise Stopped(f"{task.root}: stopped; run the same again to go on")
    _await_cores(cores)
    remove(at(task.root) / "trials")
    origins = [origin for origin, _ in first]
    # A result has the settings only if its trial reported something before its end.
    settings = tune.ExperimentAnalysis(
        results.experiment_path, storage_filesystem=results.filesystem
    ).get_all_configs()
    return [
        _trial(result, settings, number, origins[number] if number < len(origins) else "search")
        for number, result in enumerate(results)
    ]


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


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's words."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def of(domain: Range | Choices) -> Any:
        if isinstance(domain, Choices):
            return CategoricalDistribution(domain.choices)
        if isinstance(domain.low, int) and isinstance(domain.high, int):
            return IntDistribution(domain.low, domain.high, log=domain.log)
        return FloatDistribution(domain.low, domain.high, log=domain.log)

    return {name: of(domain) for name, domain in space.parameters.items()}


def _id(trial: Any) -> str:
    """Folders by trial, not by settings: those may be long."""
    name: str = trial.trial_id
    return name


def _trial(result: Any, settings: Mapping[str, Any], number: int, origin: str) -> Trial:
    name = PurePosixPath(result.path).name
    figures = result.metrics or {}
    frame = result.metrics_dataframe
    curve: list[tuple[int, float]] = []
    if frame is not None and METRIC in frame:
        told = frame[[TIME, METRIC]].dropna()
        # A trial that went on after a crash tells some points again.
        curve = sorted({int(p): float(ar) for p, ar in told.itertuples(index=False)}.items())
    percent = curve[-1][0] if curve else 0
    status: Status = "done" if percent >= 100 else "stopped"
    error = None
    if result.error is not None:
        lines = [line for line in str(result.error).strip().splitlines() if line.strip()]
        error = lines[-1].strip() if lines else type(result.error).__name__
        status = "diverged" if "Diverged" in str(result.error) else "failed"
    return Trial(
        id=name,
        number=number,
        origin=origin,
        status=status,
        settings=settings[name],
        ar=curve[-1][1] if curve else None,
        percent=percent,
        seconds=round(float(figures.get("time_total_s", 0.0)), 1),
        curve=curve,
        error=error,
    )


@contextmanager
def _ending(stop: threading.Event) -> Iterator[None]:
    """Ends Tune once `stop` is set: as by Ctrl-C, which it saves its state on."""
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
