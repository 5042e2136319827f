"""Promises of mla_ray.serving.coalescing: few calls, right results, nobody waits for company."""

import asyncio
from collections.abc import Sequence

import pytest

from mla_ray.serving.coalescing import Coalescer, Overloaded


class Doubler:
    """Doubles numbers, when it is let; a 13 among them fails the call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, numbers: list[int]) -> Sequence[int]:
        self.calls.append(numbers)
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
