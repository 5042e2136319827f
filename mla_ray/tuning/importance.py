"""Importance of the parameters of a sweep, by PED-ANOVA.

PED-ANOVA measures how far the distribution of a parameter's values among the best trials is from
its distribution among all trials (Watanabe, Bansal and Hutter, 2023,
https://arxiv.org/abs/2304.10255). The best trials are the best third here.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from mla_ray.tuning.outcome import Trial, Value

FEWEST = 4
"""Minimum number of trials for which importance is computed."""

TOP = 1 / 3
"""Share of the trials that count as the best.

Optuna's default is a tenth, which is two of twenty trials. Optuna recommends at least five. In 40
random sweeps of 20 trials, each with one decisive parameter and four noise parameters, a third
identified the decisive parameter in 35 sweeps and a tenth in 19.
"""

WIDE = 30
"""Ratio of largest to smallest value from which positive numbers get a logarithmic scale."""


def measured(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials whose AR counts: status `done` or `stopped`, and a finite AR."""
    return [
        trial
        for trial in trials
        if trial.status in ("done", "stopped") and trial.ar is not None and math.isfinite(trial.ar)
    ]


def values(trials: Sequence[Trial]) -> dict[str, list[Value]]:
    """Return the distinct values of each parameter, sorted: numbers first, then strings."""
    distinct: dict[str, set[Value]] = {}
    for trial in trials:
        for name, value in trial.settings.items():
            distinct.setdefault(name, set()).add(value)
    return {name: sorted(some, key=_order) for name, some in distinct.items()}


def numeric(some: Sequence[Value]) -> list[float] | None:
    """Return the values as numbers, or None if one of them is a string."""
    numbers = [float(value) for value in some if not isinstance(value, str)]
    return numbers if len(numbers) == len(some) else None


def logarithmic(low: float, high: float) -> bool:
    """Return whether a range should have a logarithmic scale."""
    return low > 0 and high / low >= WIDE


def importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the share of importance of each parameter, the largest first.

    Only trials with status `done` or `stopped` and a finite AR count. The shares sum to 1. A
    parameter with one value has the share 0. If no parameter varied, all shares are 0.

    Returns:
        Shares by parameter. Empty if fewer than `FEWEST` trials count or all have the same AR.

    """
    trials = measured(trials)
    if len(trials) < FEWEST or len({trial.ar for trial in trials}) == 1:
        return {}
    distinct = values(trials)
    space = {name: _distribution(some) for name, some in distinct.items() if len(some) > 1}
    shares = dict.fromkeys(distinct, 0.0)
    if space:
        with _quiet():
            study = optuna.create_study(direction="maximize")
            for trial in trials:
                settings = {name: trial.settings[name] for name in space if name in trial.settings}
                study.add_trial(
                    optuna.trial.create_trial(
                        params=settings,
                        distributions={name: space[name] for name in settings},
                        value=trial.ar,
                    )
                )
            evaluator = PedAnovaImportanceEvaluator(target_quantile=TOP)
            shares |= get_param_importances(study, evaluator=evaluator, params=list(space))
    return dict(sorted(shares.items(), key=lambda share: -share[1]))


def _order(value: Value) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value), "")


def _distribution(some: Sequence[Value]) -> BaseDistribution:
    numbers = numeric(some)
    if numbers is None:
        return CategoricalDistribution(list(some))
    low, high = numbers[0], numbers[-1]
    log = logarithmic(low, high)
    if all(isinstance(value, int) for value in some):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log and warnings about this internal study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
