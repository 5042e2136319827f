"""SIGTERM and SIGINT as an event, so that a job may save before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType


class StopEvent(Event):
    """Set by SIGTERM and SIGINT."""

    received: signal.Signals | None = None

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.set()  # logging is not safe here


@contextmanager
def stop_on_signals() -> Iterator[StopEvent]:
    """An event that the first SIGTERM or SIGINT sets; a second has its usual effect."""
    stop = StopEvent()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
