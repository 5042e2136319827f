"""Promises of mla_ray.tuning.importance."""

import logging
import random

import optuna
import pytest

from mla_ray.tuning.importance import importance
from mla_ray.tuning.outcome import Value
from tests.support.logs import logged
from tests.support.trials import TEMPERATURES, searched, trial


def test_importance_ranks_what_decides_over_noise() -> None:
    """In nearly all sweeps of 20 trials: with so few, noise can look like a cause."""
    first = [next(iter(importance(searched(seed)))) for seed in range(20)]
    assert first.count("nlt.lr") >= 16, first


def test_shares_sum_to_one_largest_first_and_what_never_varied_has_none() -> None:
    shares = importance(searched())
    assert set(shares) == set(searched()[0].settings)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares["warmup"] == 0


def test_importance_wants_high_ar() -> None:
    """The best are those of high AR: only they share a value of `a`, the worst share one of `b`."""
    trials = [
        trial(
            n,
            50.0 - n,
            settings={"a": "good" if n < 6 else f"x{n % 3}", "b": "bad" if n > 12 else f"y{n % 3}"},
        )
        for n in range(18)
    ]
    shares = importance(trials)
    assert shares["a"] > shares["b"]


def test_a_choice_that_decides_is_found_among_strings_and_numbers() -> None:
    draw = random.Random(0)  # noqa: S311
    trials = []
    for number in range(24):
        chosen: Value = draw.choice(TEMPERATURES)
        ar = 50.0 + 10 * (chosen == "native") + draw.random()
        trials.append(trial(number, ar, settings={"temperature": chosen, "lr": draw.random()}))
    shares = importance(trials)
    assert shares["temperature"] > shares["lr"]


def test_importance_counts_only_trials_that_are_done_or_stopped() -> None:
    good = [trial(n, 40.0 + n) for n in range(3)]
    assert importance([*good, trial(3, None, status="failed")]) == {}
    assert importance([*good, trial(3, 1.0, status="diverged")]) == {}
    assert importance([*good, trial(3, 50.0, status="stopped")]) == {"nlt.lr": 1, "rows": 0}


def test_optuna_says_nothing_and_is_left_as_loud_as_it_was() -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        with logged("optuna", logging.NOTSET) as messages:
            importance(searched())
        assert messages == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
