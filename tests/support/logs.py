"""What was logged; pytest's own way to see it is off (`-p no:logging`)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged(logger: str, level: int = logging.WARNING) -> Iterator[list[str]]:
    """The messages of a logger ("" is the root), from a level on, in the body of a `with`."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep(level)
    logging.getLogger(logger).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(logger).removeHandler(handler)
