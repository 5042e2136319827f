"""Circuit breaker in front of an index on a Qdrant server that may be gone or frozen."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROBE_EVERY_S = 1.0
"""Seconds between two probes of a server that is away."""

log = logging.getLogger(__name__)


class IndexUnavailable(Exception):
    """The server of the index does not answer. The same call may succeed later."""


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
