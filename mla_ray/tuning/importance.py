"""Which parameters of a sweep mattered.

By PED-ANOVA: how far the distribution of a parameter's values among the best third of the trials is
from that among all (Watanabe, Bansal and Hutter, 2023, https://arxiv.org/abs/2304.10255).
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
"""Trials below which a share would say nothing."""

TOP = 1 / 3
"""Share of the trials that count as the best.

Optuna's tenth is two of twenty trials, and it asks for five. Of 40 random sweeps of 20 trials, each
with one parameter that decides and four of noise, a third finds it in 35, a tenth in 19.
"""

WIDE = 30
"""Largest over smallest value from which a scale of positive numbers is logarithmic."""


def measured(trials: Sequence[Trial]) -> list[Trial]:
    """Those whose AR counts: trained until the end or stopped, and not lost to a NaN."""
    return [
        trial
        for trial in trials
        if trial.status in ("done", "stopped") and trial.ar is not None and math.isfinite(trial.ar)
    ]


def values(trials: Sequence[Trial]) -> dict[str, list[Value]]:
    """Distinct values of each parameter, in their order: numbers, then strings."""
    distinct: dict[str, set[Value]] = {}
    for trial in trials:
        for name, value in trial.settings.items():
            distinct.setdefault(name, set()).add(value)
    return {name: sorted(some, key=_order) for name, some in distinct.items()}


def numeric(some: Sequence[Value]) -> list[float] | None:
    """The values as numbers, or None if one of them is a string."""
    numbers = [float(value) for value in some if not isinstance(value, str)]
    return numbers if len(numbers) == len(some) else None


def logarithmic(low: float, high: float) -> bool:
    """Whether a range is read better in orders of magnitude."""
    return low > 0 and high / low >= WIDE


def importance(trials: Sequence[Trial]) -> dict[str, float]:
    """Share of each parameter in what sets the best trials apart; they sum to 1, largest first.

    Of trials that are done or stopped and have an AR. A parameter with one value has 0, so all have
    0 where nothing varied. Empty if there are fewer than `FEWEST` such trials, or all have one AR.
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
    """Nothing on the console about a study that the user knows nothing of."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
