"""Ray Tune's `ResultGrid` as the trials of an outcome."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mla_ray.tuning.outcome import Status, Trial
from mla_ray.tuning.trial import METRIC, TIME, Point


def trials_of(results: Any, origins: Sequence[str]) -> list[Trial]:
    """The trials of a `ResultGrid`, in the order they were begun.

    Args:
        results: what `Tuner.fit` returned.
        origins: where the settings of the first trials are from.

    """
    from ray import tune

    # A result has the settings only if its trial reported something before its end.
    settings: Mapping[str, Point] = tune.ExperimentAnalysis(
        results.experiment_path, storage_filesystem=results.filesystem
    ).get_all_configs()
    trials = []
    for number, result in enumerate(results):
        name = PurePosixPath(result.path).name
        origin = origins[number] if number < len(origins) else "search"
        trials.append(_trial(result, name, settings[name], number, origin))
    return trials


def _trial(result: Any, name: str, settings: Point, number: int, origin: str) -> Trial:
    figures = result.metrics or {}
    curve = _curve(result.metrics_dataframe)
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
        settings=dict(settings),
        ar=curve[-1][1] if curve else None,
        percent=percent,
        seconds=round(float(figures.get("time_total_s", 0.0)), 1),
        curve=curve,
        error=error,
    )


def _curve(frame: Any) -> list[tuple[int, float]]:
    """Percent of the steps and best AR, from what a trial reported (a DataFrame or None).

    A trial that went on after a crash reported some points twice.
    """
    if frame is None or METRIC not in frame:
        return []
    points = frame[[TIME, METRIC]].dropna()
    return sorted({int(p): float(ar) for p, ar in points.itertuples(index=False)}.items())
