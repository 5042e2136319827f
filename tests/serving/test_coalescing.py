"""Promises of mla_ray.serving.coalescing: few calls, right results, nobody waits for company."""

import asyncio
from collections.abc import Sequence

import pytest

from mla_ray.serving.coalescing import Coalescer, Overloaded


class Doubler:
    """Doubles numbers, when it is let; a 13 among them fails the call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.waits: list[float] = []
        self.gate = asyncio.Event()

    async def __call__(self, numbers: list[int], waited_s: float) -> Sequence[int]:
        self.calls.append(numbers)
        self.waits.append(waited_s)
        await self.gate.wait()
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * number for number in numbers]


def test_what_comes_in_during_a_call_goes_together_in_the_next() -> None:
    async def run() -> None:
        doubler = Doubler()
        double = Coalescer(doubler, max_batch=4, max_queue=100)
        tasks = [asyncio.create_task(double([n, n + 100])) for n in range(6)]
        await asyncio.sleep(0.01)
        assert doubler.calls == [[0, 100]]  # the first went at once, alone
        doubler.gate.set()
        assert await asyncio.gather(*tasks) == [[2 * n, 2 * n + 200] for n in range(6)]
        assert doubler.calls[1:] == [[1, 101, 2, 102], [3, 103, 4, 104], [5, 105]]

    asyncio.run(run())


def test_one_large_request_is_a_batch_of_its_own() -> None:
    async def run() -> None:
        doubler = Doubler()
        doubler.gate.set()
        double = Coalescer(doubler, max_batch=2, max_queue=3)
        assert list(await double([1, 2, 3, 4, 5])) == [2, 4, 6, 8, 10]

    asyncio.run(run())


def test_a_full_queue_refuses_and_recovers() -> None:
    async def run() -> None:
        doubler = Doubler()
        double = Coalescer(doubler, max_batch=1, max_queue=2)
        tasks = [asyncio.create_task(double([n])) for n in range(3)]  # one runs, two wait
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await double([9])
        doubler.gate.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [4]]
        assert list(await double([9])) == [18]

    asyncio.run(run())


def test_a_failure_is_that_of_its_own_call_alone() -> None:
    async def run() -> None:
        doubler = Doubler()
        doubler.gate.set()
        double = Coalescer(doubler, max_batch=1, max_queue=9)
        results = await asyncio.gather(
            double([1]), double([13]), double([3]), return_exceptions=True
        )
        assert results[0] == [2]
        assert isinstance(results[1], ValueError)
        assert results[2] == [6]

    asyncio.run(run())


def test_who_has_gone_costs_nothing() -> None:
    async def run() -> None:
        doubler = Doubler()
        double = Coalescer(doubler, max_batch=1, max_queue=9)
        first, second, third = (asyncio.create_task(double([n])) for n in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        assert double._queued == 1  # its place is free
        doubler.gate.set()
        assert await first == [0]
        assert await third == [4]
        assert [1] not in doubler.calls

    asyncio.run(run())


def test_as_many_calls_run_as_there_are_slots_and_their_number_may_change() -> None:
    async def run() -> None:
        doubler = Doubler()
        double = Coalescer(doubler, max_batch=1, max_queue=9)
        tasks = [asyncio.create_task(double([n])) for n in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert doubler.calls == [[0]]
        double.slots = 3
        tasks.append(asyncio.create_task(double([4])))  # a new request starts what has room
        await asyncio.sleep(0.01)
        assert doubler.calls == [[0], [1], [2]]
        double.slots = 1
        doubler.gate.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [4], [6], [8]]

    asyncio.run(run())


def test_a_call_is_told_how_long_its_items_waited() -> None:
    async def run() -> None:
        doubler = Doubler()
        double = Coalescer(doubler, max_batch=4, max_queue=9)
        first = asyncio.create_task(double([0]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(double([1, 2, 3]))
        await asyncio.sleep(0.1)
        third = asyncio.create_task(double([4]))
        await asyncio.sleep(0.1)
        doubler.gate.set()
        await asyncio.gather(first, second, third)
        assert doubler.calls == [[0], [1, 2, 3, 4]]
        assert doubler.waits[0] < 0.05
        # Three items waited for at least 0.2 s, and one for at least 0.1 s.
        assert doubler.waits[1] >= 0.17

    asyncio.run(run())


class Slow:
    """Takes `seconds` for each item."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, numbers: list[int], waited_s: float) -> Sequence[int]:
        await asyncio.sleep(self.seconds * len(numbers))
        return numbers


def test_who_would_wait_too_long_is_refused_and_told_when_to_come_back() -> None:
    async def run() -> None:
        slow = Slow(0.01)
        echo = Coalescer(slow, max_batch=4, max_queue=10_000, max_wait_s=1.5)
        # Nothing is known of the speed yet, so the burst is accepted as a whole.
        burst = [asyncio.create_task(echo([n] * 4)) for n in range(100)]
        await asyncio.sleep(0.2)
        with pytest.raises(Overloaded) as refused:  # about 380 items of at least 10 ms wait
            await echo([7])
        assert 2 <= refused.value.retry_after_s <= 60
        assert echo.queued >= 300
        for task in burst[20:]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert list(await echo([8])) == [8]
        await asyncio.gather(*burst, return_exceptions=True)

    asyncio.run(run())


def test_small_batches_say_nothing_of_the_speed_of_a_full_queue() -> None:
    async def run() -> None:
        echo = Coalescer(Slow(0.02), max_batch=16, max_queue=10_000, max_wait_s=0.1)
        for number in range(3):  # one item a call, as on a server with little load
            await echo([number])
        burst = [asyncio.create_task(echo([n])) for n in range(12)]
        await asyncio.sleep(0)
        assert echo.expected_wait_s == 0
        assert await asyncio.gather(*burst) == [[n] for n in range(12)]

    asyncio.run(run())


def test_a_server_that_becomes_slower_refuses_after_a_few_batches() -> None:
    async def run() -> None:
        slow = Slow(0.0001)
        echo = Coalescer(slow, max_batch=4, max_queue=10_000, max_wait_s=1.0)
        for _ in range(10):
            await echo([1] * 4)
        slow.seconds = 0.01
        burst = [asyncio.create_task(echo([n] * 4)) for n in range(100)]
        await asyncio.sleep(0.4)
        with pytest.raises(Overloaded):  # over 300 items of at least 10 ms wait
            await echo([7])
        for task in burst:
            task.cancel()
        await asyncio.gather(*burst, return_exceptions=True)

    asyncio.run(run())
