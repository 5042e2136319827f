"""Promises of mla_ray.training.early_stopping."""

import json

import torch
from torch import Tensor

from mla_ray.training.early_stopping import EarlyStopping


def weights(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2,), value)}


def test_the_first_of_equal_bests_is_kept_and_restored() -> None:
    stopping = EarlyStopping(patience=0)
    for step, ar in ((10, 30.0), (20, 50.0), (30, 50.0), (40, 20.0)):
        stopping.update(ar, step, lambda step=step: weights(step))
    assert (stopping.best, stopping.best_step, stopping.latest) == (50.0, 20, 20.0)
    trained = weights(40)
    stopping.restore_best_weights(trained)
    assert trained["weight"].tolist() == [20.0, 20.0]


def test_best_weights_are_a_copy() -> None:
    stopping, trained = EarlyStopping(patience=0), weights(1)
    stopping.update(1.0, 1, lambda: trained)
    trained["weight"].zero_()
    stopping.restore_best_weights(trained)
    assert trained["weight"].tolist() == [1.0, 1.0]


def test_it_stops_after_as_many_evaluations_without_a_gain_as_patience_says() -> None:
    stopping = EarlyStopping(patience=2)
    stops = []
    for step, ar in enumerate((10.0, 9.0, 11.0, 11.0, 11.0)):
        stopping.update(ar, step, lambda: weights(0))
        stops.append(stopping.should_stop)
    assert stops == [False, False, False, False, True]


def test_without_patience_it_never_stops() -> None:
    stopping = EarlyStopping(patience=0)
    for step in range(20):
        stopping.update(0.0, step, lambda: weights(0))
    assert not stopping.should_stop


def test_without_an_evaluation_nothing_is_restored() -> None:
    trained = weights(3)
    EarlyStopping(patience=1).restore_best_weights(trained)
    assert trained["weight"].tolist() == [3.0, 3.0]


def test_it_goes_on_from_its_state_as_json_holds_it() -> None:
    first, second = EarlyStopping(patience=2), EarlyStopping(patience=2)
    first.update(10.0, 5, lambda: weights(5))
    first.update(9.0, 10, lambda: weights(10))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), first.best_weights)
    second.update(8.0, 15, lambda: weights(15))
    assert second.should_stop
    assert (second.best, second.best_step, second.wait) == (10.0, 5, 2)
    assert second.best_weights["weight"].tolist() == [5.0, 5.0]
