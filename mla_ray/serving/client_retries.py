"""When a client sends a request again, and how long it waits before.

httpx2's transports have `retries` of their own, but of connections that cannot be made alone: not
of one that breaks, nor of an answer that says to come again.
"""

import random
import time
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz

import httpx2

RETRIED_ERRORS = (httpx2.ConnectTimeout, httpx2.NetworkError, httpx2.RemoteProtocolError)
RETRIED_STATUSES = (429, 503)


@dataclass(frozen=True)
class Retry:
    """What to do about 429, 503 and connections that fail. No timeout of an answer is retried.

    Every request may be sent again as it was: none changes anything the second time.
    """

    attempts: int = 5  # in all
    first_s: float = 0.5  # doubles with every attempt
    longest_s: float = 30.0  # also of a server's Retry-After

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, must be at least 1")

    def wait_s(self, attempt: int, asked_s: float = 0.0) -> float:
        """Seconds before the next one: half of it chance, so that clients do not come as one.

        `asked_s` is what the server asked for.
        """
        backoff = self.first_s * 2.0 ** (attempt - 1)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  no secret
        return min(max(asked_s, 0.0) + backoff * jitter, self.longest_s)


DEFAULT_RETRY = Retry()


def retry_after_s(header: str) -> float:
    """Seconds that a Retry-After asks for, which has them or a date; 0 if neither."""
    if header.isascii() and header.isdigit():
        return float(header)
    date = parsedate_tz(header)
    try:
        return mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        return 0.0
