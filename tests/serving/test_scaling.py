"""Promises of mla_ray.serving.scaling: up if work waits, down if fewer replicas are enough."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from mla_ray.serving.scaling import WaitPolicy


def context(running: int, target: int, load: dict[str, dict[str, float]] | None) -> Any:
    return SimpleNamespace(
        current_num_replicas=running, target_num_replicas=target, aggregated_metrics=load
    )


@pytest.mark.parametrize(
    ("running", "wait_s", "work", "wanted"),
    [
        (1, 0.01, 0.9, 1),  # busy, but nobody waits
        (1, 0.06, 1.0, 2),
        (2, 0.06, 2.0, 3),
        (4, 9.0, 4.0, 8),  # at most twice as many a step
        (2, 0.01, 0.7, 2),  # one alone would be too busy
        (2, 0.01, 0.5, 1),
        (8, 0.0, 1.5, 3),
        (3, 0.0, 0.01, 1),
        (1, 0.0, 0.01, 1),  # the last replica goes only if it has no work at all
        (1, 0.0, 0.0, 0),  # Ray Serve keeps min_replicas
    ],
)
def test_the_number_of_replicas(running: int, wait_s: float, work: float, wanted: int) -> None:
    policy = WaitPolicy(max_wait_s=0.05, target_busy=0.6)
    assert math.ceil(policy.replicas(running, wait_s, work)) == wanted


def test_a_busy_ingress_gets_a_second_one_although_nothing_waits() -> None:
    policy = WaitPolicy(max_busy=0.8)
    assert policy.replicas(1, 0.0, 0.75) == 1
    assert math.ceil(policy.replicas(1, 0.0, 0.85)) == 2
    assert math.ceil(policy.replicas(2, 0.0, 1.3)) == 2
    assert math.ceil(policy.replicas(2, 0.0, 1.9)) == 3


def test_a_step_down_causes_no_step_up() -> None:
    """The work stays the same on fewer replicas, so each of them stays below `target_busy`."""
    policy = WaitPolicy()
    for running in range(2, 20):
        for tenth in range(10 * running):
            work = tenth / 10
            fewer = max(math.ceil(policy.replicas(running, 0.0, work)), 1)
            assert fewer <= running
            if fewer < running:
                assert work / fewer <= 0.6 + 1e-9


def test_waits_are_averaged_over_replicas_and_work_is_summed() -> None:
    load = {"wait_s": {"a": 0.12, "b": 0.0}, "busy": {"a": 1.0, "b": 0.5}}
    wanted, _ = WaitPolicy()(context(2, 2, load))
    assert wanted == pytest.approx(2 * 0.06 / 0.05)
    load = {"wait_s": {"a": 0.0, "b": 0.0}, "busy": {"a": 0.3, "b": 0.2}}
    assert WaitPolicy()(context(2, 2, load))[0] == 1


@pytest.mark.parametrize("load", [None, {}, {"busy": {"a": 1.0}}, {"wait_s": {}, "busy": {}}])
def test_without_measurements_nothing_changes(load: dict[str, dict[str, float]] | None) -> None:
    assert WaitPolicy()(context(1, 3, load))[0] == 3


@pytest.mark.parametrize(
    "settings", [{"max_wait_s": 0}, {"target_busy": 1.0}, {"target_busy": 0}, {"max_busy": 0.5}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        WaitPolicy(**settings)
