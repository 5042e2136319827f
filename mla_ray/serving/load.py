"""Measurement of the load of one replica: how long work waited, and how busy the replica was.

Ray Serve samples these values on every replica and hands them to `mla_ray.serving.scaling`.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT, BUSY = "wait_s", "busy"
"""Names of the values in a sample."""
LOOP_CHECK_S = 0.05
"""Seconds between two measurements of the delay of an event loop."""

Sample = dict[str, float]
"""Values since the previous sample.

`wait_s`: mean time in seconds that an item waited before it was processed. 0 if the replica had
nothing to do. Absent if the replica processed earlier items all the time.
`busy`: share of the time in which the replica processed something, 0 to 1.
"""


class Load:
    """Load of a replica that processes items in threads. Its methods are thread-safe.

    Args:
        clock: Current time in seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()  # start of the next sample
        self._active = 0
        self._active_since = 0.0
        self._busy_s = 0.0
        self._waited_s = 0.0
        self._items = 0

    def waited(self, seconds: float, items: int = 1) -> None:
        """Record that the processing of some items begins, each after a time of waiting."""
        with self._lock:
            self._waited_s += seconds * items
            self._items += items

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time in the context as busy. Contexts that overlap count once."""
        with self._lock:
            if self._active == 0:
                self._active_since = self._clock()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._busy_s += self._clock() - self._active_since

    @contextmanager
    def processing(self, since: float, items: int) -> Iterator[None]:
        """Count the context as busy with items that have waited since a time of the clock."""
        self.waited(self._clock() - since, items)
        with self.busy():
            yield

    def sample(self) -> Sample:
        """Return the load since the previous call."""
        with self._lock:
            now = self._clock()
            if self._active:
                self._busy_s += now - self._active_since
                self._active_since = now
            elapsed = max(now - self._since, 1e-9)
            sample = {BUSY: min(self._busy_s / elapsed, 1.0)}
            if self._items:
                sample[WAIT] = self._waited_s / self._items
            elif not self._active:
                sample[WAIT] = 0.0
            self._since, self._busy_s, self._waited_s, self._items = now, 0.0, 0.0, 0
            return sample


class LoopLoad:
    """Load of a replica whose work runs on its event loop.

    The wait is the delay of the loop: the time that an event waits until the loop handles it. Busy
    is the processor time of the process.
    """

    def __init__(self) -> None:
        self._delays = Load()
        self._sampled = (time.monotonic(), time.process_time())

    async def follow(self) -> None:
        """Measure the delay of the running event loop until the task is cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(LOOP_CHECK_S)
            self._delays.waited(max(time.monotonic() - began - LOOP_CHECK_S, 0.0))

    def sample(self) -> Sample:
        """Return the load since the previous call."""
        before, used_before = self._sampled
        self._sampled = now, used = time.monotonic(), time.process_time()
        busy = min((used - used_before) / max(now - before, 1e-9), 1.0)
        return self._delays.sample() | {BUSY: busy}
