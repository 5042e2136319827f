"""Batching of concurrent requests without a batching delay.

A call starts as soon as a slot is free and takes the items that wait at that time. Batches grow
under load. On an idle server a single request starts immediately.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, Self, TypeVar


class Sliceable(Protocol):
    """Results of a batch that can be sliced by request."""

    def __getitem__(self, items: slice, /) -> Self: ...


Item = TypeVar("Item")
Results = TypeVar("Results", bound=Sliceable)
Waiting = tuple[list[Item], asyncio.Future[Results]]
"""Items of one request and the future for their results."""


class Overloaded(Exception):
    """A queue is full. The request had no effect and can be repeated later."""


class Coalescer(Generic[Item, Results]):
    """Joins the items of concurrent requests into batches.

    Args:
        call: Processes a list of items and returns one result per item, in order.
        max_batch: Maximum number of items in one call. A single request may exceed it.
        max_queue: Maximum number of items that wait. A request is always accepted if no items wait.
        slots: Maximum number of concurrent calls. Use the number of workers behind `call`.

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
        self._running: set[asyncio.Task[None]] = set()  # asyncio holds only weak references

    @property
    def queued(self) -> int:
        """Number of items that wait."""
        return self._queued

    async def __call__(self, items: list[Item]) -> Results:
        """Queue the items and return their results.

        Raises:
            Overloaded: The queue has no space for the items.
            Exception: Any exception that `call` raised for the batch.

        """
        if self._queued and self._queued + len(items) > self._max_queue:
            raise Overloaded(f"{self._queued:,} items are waiting")
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        self._queued += len(items)
        self._start()
        try:
            return await future
        except asyncio.CancelledError:  # the client disconnected: remove its items from the queue
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
