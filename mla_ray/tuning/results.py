"""Conversion of Ray Tune's `ResultGrid` to the trials of an outcome."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mla_ray.tuning.outcome import Status, Trial
from mla_ray.tuning.trial import METRIC, TIME, Point


def trials_of(results: Any, origins: Sequence[str]) -> list[Trial]:
    """Return the trials of a `ResultGrid` in start order.

    Args:
        results: Return value of `Tuner.fit`.
        origins: Origins of the settings of the first trials. All others have the origin `search`.

    """
    from ray import tune

    # A result contains its settings only if the trial reported metrics before it ended.
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
    """Return pairs of percentage of steps and best AR from a trial's metrics (DataFrame or None).

    A trial that resumed after a crash reported some points twice. Only the last report counts.
    """
    if frame is None or METRIC not in frame:
        return []
    points = frame[[TIME, METRIC]].dropna()
    return sorted({int(p): float(ar) for p, ar in points.itertuples(index=False)}.items())
