"""SIGTERM and SIGINT as an event, so that a job can save before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType


class StopEvent(Event):
    """Event that SIGTERM or SIGINT sets."""

    received: signal.Signals | None = None
    """The signal that set the event."""

    def listen(self) -> None:
        """Install the signal handlers. Call it from the main thread."""
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.set()  # no logging: it is not safe in a signal handler


@contextmanager
def stop_on_signals() -> Iterator[StopEvent]:
    """Yield an event that the first SIGTERM or SIGINT sets.

    A second signal has its default effect. The previous handlers are restored at the end.
    """
    stop = StopEvent()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.listen()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
