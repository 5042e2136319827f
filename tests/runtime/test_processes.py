"""Promises of runtime.processes: work of several processes, in order."""

import os
import time

import pytest

from mla_ray.runtime.processes import map_in_processes


def slow_square(number: int) -> tuple[int, int]:
    """Return the square and the process. The first takes longest."""
    time.sleep(0.5 if number == 0 else 0.01)
    return number * number, os.getpid()


def inverse(number: int) -> float:
    return 1 / number


def test_results_come_in_order_from_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    squares, processes = zip(*map_in_processes(slow_square, range(6)), strict=True)
    assert squares == (0, 1, 4, 9, 16, 25)
    assert os.getpid() not in processes


@pytest.mark.parametrize(("cores", "items"), [({0}, [2, 3]), ({0, 1}, [2])])
def test_nothing_to_share_stays_in_this_process(
    cores: set[int], items: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert {pid for _, pid in map_in_processes(slow_square, items)} == {os.getpid()}


def test_an_error_in_a_process_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    results = map_in_processes(inverse, [2, 0, 4])
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)
