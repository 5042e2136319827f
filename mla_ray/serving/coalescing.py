"""Many small calls into few large ones, without making anyone wait for company.

A call starts as soon as one of `slots` is free, with all that has come in meanwhile; under load
batches grow by themselves, on an idle server a lone request goes at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, Self, TypeVar


class Sliceable(Protocol):
    """Results of many items that can be cut into those of each request."""

    def __getitem__(self, items: slice, /) -> Self: ...


Item = TypeVar("Item")
Results = TypeVar("Results", bound=Sliceable)
Waiting = tuple[list[Item], asyncio.Future[Results]]
"""The items of one request, and where its results go."""


class Overloaded(Exception):
    """The queue is full. Nothing was done; try again later."""


class Coalescer(Generic[Item, Results]):
    """Joins the items of concurrent requests.

    Args:
        call: does a list of items; results one an item, in order.
        max_batch: items a call, unless one request alone brings more.
        max_queue: items that may wait.
        slots: calls under way at a time; as many as there are to take them.

    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[Results]],
        max_batch: int,
        max_queue: int,
        slots: int = 1,
    ) -> None:
        self._call = call
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._free = slots
        self._waiting: deque[Waiting[Item, Results]] = deque()
        self._queued = 0
        self._running: set[asyncio.Task[None]] = set()  # asyncio itself holds tasks only weakly

    async def __call__(self, items: list[Item]) -> Results:
        """The results of `items`. Raises Overloaded, or what the call raised."""
        if self._queued and self._queued + len(items) > self._max_queue:
            raise Overloaded(f"{self._queued:,} items are waiting")
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        self._queued += len(items)
        self._start()
        try:
            return await future
        except asyncio.CancelledError:  # its client has gone: make room for others
            before = len(self._waiting)
            self._waiting = deque(other for other in self._waiting if other[1] is not future)
            if len(self._waiting) < before:
                self._queued -= len(items)
            raise

    def _start(self) -> None:
        while self._free and self._waiting:
            batch: list[Waiting[Item, Results]] = []
            size = 0
            while self._waiting and (
                not batch or size + len(self._waiting[0][0]) <= self._max_batch
            ):
                items, future = self._waiting.popleft()
                self._queued -= len(items)
                batch.append((items, future))
                size += len(items)
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[Waiting[Item, Results]]) -> None:
        try:
            results = await self._call([item for items, _ in batch for item in items])
            start = 0
            for items, future in batch:
                if not future.done():
                    future.set_result(results[start : start + len(items)])
                start += len(items)
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start()
