"""Circuit breakers for an index on a Qdrant server that may be gone or frozen.

`Breaker` stands in front of the server. `Absence` stands in front of the encoders, so that no query
is encoded for a server that is away.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROBE_EVERY_S = 1.0
"""Seconds between two probes of a server that is away."""
TRIAL_EVERY_S = 0.25
"""Seconds between two searches that are let through while the index is away."""

log = logging.getLogger(__name__)


class IndexUnavailable(Exception):
    """The server of the index does not answer. The same call may succeed later."""


class Absence:
    """Refuses searches before they cost anything, while searches find that the index is away.

    One search in `every_s` is let through. If it succeeds, all are.

    Args:
        every_s: Seconds between two searches that are let through.
        clock: Returns the time in seconds.

    """

    def __init__(
        self, every_s: float = TRIAL_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s = every_s
        self._clock = clock
        self._away = False
        self._next_trial = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the search in the `with` block.

        Raises:
            IndexUnavailable: The index is away. If an earlier search found it, the block does not
                run.

        """
        now = self._clock()
        if self._away:
            if now < self._next_trial:
                raise IndexUnavailable("the server of the index does not answer")
            self._next_trial = now + self._every_s
        try:
            yield
        except IndexUnavailable:
            self._away = True
            self._next_trial = self._clock() + self._every_s
            raise
        self.end()

    def end(self) -> None:
        """Let all searches through: the index answers."""
        self._away = False


class Breaker:
    """Refuses calls at once while a server is known to be away, and notices its return.

    A ConnectionError of a call opens the breaker. Then a thread probes the server, at once and
    every second, one probe at a time. So users never wait for a server that is away, and a single
    slow call costs no other call more than the time of a probe.

    Args:
        probe: Asks the server for something. Raises a ConnectionError if it does not answer. Any
            other error is an answer.
        every_s: Seconds between two probes.

    """

    def __init__(self, probe: Callable[[], object], every_s: float = PROBE_EVERY_S) -> None:
        self._probe = probe
        self._every_s = every_s
        self._away = False
        self._opening = threading.Lock()
        self._closing = threading.Event()

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Guard the calls in the `with` block.

        Raises:
            IndexUnavailable: The server is away. If that is known, the block does not run.

        """
        if self._away:
            raise IndexUnavailable("the server of the index does not answer")
        try:
            yield
        except ConnectionError as error:
            self._open(error)
            raise IndexUnavailable("the server of the index does not answer") from error

    def close(self) -> None:
        """End the probes. Safe to call twice."""
        self._closing.set()

    def _open(self, error: ConnectionError) -> None:
        with self._opening:
            if self._away or self._closing.is_set():
                return
            self._away = True
        log.warning("calls to the index are refused until it answers again: %s", error)
        threading.Thread(target=self._await_return, name="index-probe", daemon=True).start()

    def _await_return(self) -> None:
        left = time.monotonic()
        while self._is_silent():
            if self._closing.wait(self._every_s):
                return
        self._away = False
        log.warning("the index answers again, after %.1f s", time.monotonic() - left)

    def _is_silent(self) -> bool:
        try:
            self._probe()
        except ConnectionError:
            return True
        except Exception as error:  # calls get the same error, which says more than "unavailable"
            log.warning("the index answers a probe with %s", error)
        return False
