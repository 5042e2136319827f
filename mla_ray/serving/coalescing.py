"""Batching of concurrent requests without a batching delay.

A call starts as soon as a slot is free and takes the items that wait at that time. Batches grow
under load. On an idle server a single request starts immediately.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, Protocol, Self, TypeVar


class Sliceable(Protocol):
    """Results of a batch that can be sliced by request."""

    def __getitem__(self, items: slice, /) -> Self: ...


Item = TypeVar("Item")
Results = TypeVar("Results", bound=Sliceable)
TELLING = 4
"""A batch tells the speed of a call if it has at least one item in `TELLING` of the largest batch.

Small batches cost more per item. Their speed says little about that of a full queue.
"""
NEWEST = 0.3
"""Weight of the last telling batch in the mean time per item."""


class Waiting(NamedTuple, Generic[Item, Results]):
    """Items of one request."""

    items: list[Item]
    future: asyncio.Future[Results]
    since: float
    """Time of arrival, from `time.monotonic`."""


class Overloaded(Exception):
    """A queue is full. The request had no effect and can be repeated later.

    Attributes:
        retry_after_s: Seconds after which a new attempt is likely to succeed, at least 1.

    """

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class Coalescer(Generic[Item, Results]):
    """Joins the items of concurrent requests into batches.

    Args:
        call: Processes a list of items and returns one result per item, in order. Its second
            argument is the mean time in seconds that the items have waited for the call.
        max_batch: Maximum number of items in one call. A single request may exceed it.
        max_queue: Maximum number of items that wait. A request is always accepted if no items wait.
        max_wait_s: Maximum time in seconds that a new item would wait, as far as the speed of
            recent calls tells.

    Attributes:
        slots: Maximum number of concurrent calls. Use the number of workers behind `call`.

    """

    def __init__(
        self,
        call: Callable[[list[Item], float], Awaitable[Results]],
        max_batch: int,
        max_queue: int,
        max_wait_s: float = math.inf,
    ) -> None:
        self.slots = 1
        self._call = call
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._item_s = 0.0  # mean of the last telling batches; 0 before the first one
        self._waiting: deque[Waiting[Item, Results]] = deque()
        self._queued = 0
        self._running: set[asyncio.Task[None]] = set()  # asyncio holds only weak references

    @property
    def queued(self) -> int:
        """Number of items that wait."""
        return self._queued

    @property
    def expected_wait_s(self) -> float:
        """Time in seconds that a new item would wait. 0 before the speed of calls is known."""
        return self._queued * self._item_s / self.slots

    async def __call__(self, items: list[Item]) -> Results:
        """Queue the items and return their results.

        Raises:
            Overloaded: The queue has no space for the items, or they would wait too long.
            Exception: Any exception that `call` raised for the batch.

        """
        if self._queued:
            wait = self.expected_wait_s
            if self._queued + len(items) > self._max_queue or wait > self._max_wait_s:
                raise Overloaded(f"{self._queued:,} items are waiting", wait)
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(items, future, time.monotonic()))
        self._queued += len(items)
        self._start()
        try:
            return await future
        except asyncio.CancelledError:  # the client disconnected: remove its items from the queue
            before = len(self._waiting)
            self._waiting = deque(other for other in self._waiting if other.future is not future)
            if len(self._waiting) < before:
                self._queued -= len(items)
            raise

    def _start(self) -> None:
        while len(self._running) < self.slots and self._waiting:
            batch: list[Waiting[Item, Results]] = []
            size = 0
            while self._waiting and (
                not batch or size + len(self._waiting[0].items) <= self._max_batch
            ):
                request = self._waiting.popleft()
                self._queued -= len(request.items)
                batch.append(request)
                size += len(request.items)
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: list[Waiting[Item, Results]]) -> None:
        items = [item for request in batch for item in request.items]
        began = time.monotonic()
        waited = sum((began - request.since) * len(request.items) for request in batch)
        try:
            results = await self._call(items, waited / max(len(items), 1))
            if len(items) * TELLING >= self._max_batch:
                item_s = (time.monotonic() - began) / len(items)
                self._item_s += (item_s - self._item_s) * (NEWEST if self._item_s else 1.0)
            start = 0
            for request in batch:
                if not request.future.done():
                    request.future.set_result(results[start : start + len(request.items)])
                start += len(request.items)
        except asyncio.CancelledError:
            for request in batch:
                request.future.cancel()
            raise
        except Exception as error:
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(error)
