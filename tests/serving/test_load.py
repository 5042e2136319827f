"""Promises of mla_ray.serving.load: a sample has the waits and busy share since the last."""

import asyncio
import time

import pytest

from mla_ray.serving.load import BUSY, WAIT, Load, LoopLoad


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_is_the_mean_over_items_and_starts_anew_with_each_sample() -> None:
    load = Load(Clock())
    load.waited(0.3, 3)
    load.waited(0.1, 1)
    assert load.sample()[WAIT] == pytest.approx(0.25)
    assert load.sample()[WAIT] == 0  # nothing to do


def test_busy_is_the_share_of_time_and_overlaps_count_once() -> None:
    clock = Clock()
    load = Load(clock)
    clock.now += 1
    with load.busy():
        clock.now += 1
        with load.busy():
            clock.now += 1
    clock.now += 1
    assert load.sample()[BUSY] == pytest.approx(0.5)
    clock.now += 2
    assert load.sample()[BUSY] == 0


def test_what_is_still_running_counts_up_to_the_sample() -> None:
    clock = Clock()
    load = Load(clock)
    with load.busy():
        clock.now += 3
        sample = load.sample()
        assert sample[BUSY] == pytest.approx(1)
        # The replica had no time for other items, so nothing is known of their wait.
        assert WAIT not in sample
        clock.now += 1
    clock.now += 3
    assert load.sample() == {BUSY: pytest.approx(0.25), WAIT: 0}


def test_a_loop_that_is_blocked_has_a_wait_and_is_busy() -> None:
    async def run() -> None:
        load = LoopLoad()
        following = asyncio.create_task(load.follow())
        await asyncio.sleep(0.01)
        load.sample()
        for _ in range(5):
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                pass
            await asyncio.sleep(0.06)
        blocked = load.sample()
        await asyncio.sleep(0.5)
        idle = load.sample()
        following.cancel()
        assert blocked[WAIT] > 0.05
        assert blocked[WAIT] > 5 * idle[WAIT]
        assert blocked[BUSY] > idle[BUSY]

    asyncio.run(run())
