"""Retry policy of the clients.

The option `retries` of httpx2's transports covers only connections that cannot be established. It
covers neither connections that break nor the statuses 429 and 503.
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
    """Retries of requests after status 429 or 503 and after failed connections.

    A read timeout is not retried. Every request of the API is idempotent.
    """

    attempts: int = 5
    """Maximum number of attempts, the first one included."""
    first_s: float = 0.5
    """Wait after the first attempt in seconds. It doubles with every attempt."""
    longest_s: float = 30.0
    """Maximum wait in seconds. It also limits a server's Retry-After."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, must be at least 1")

    def wait_s(self, attempt: int, asked_s: float = 0.0) -> float:
        """Return the seconds to wait after an attempt.

        Half of the backoff is random, so that clients do not retry at the same time.

        Args:
            attempt: Number of the attempt that failed, counted from 1.
            asked_s: Seconds of the server's Retry-After. The backoff is added to it.

        """
        backoff = self.first_s * 2.0 ** (attempt - 1)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  no secret
        return min(max(asked_s, 0.0) + backoff * jitter, self.longest_s)


DEFAULT_RETRY = Retry()


def retry_after_s(header: str) -> float:
    """Parse a Retry-After header, which has seconds or a date. Return seconds; 0 if invalid.

    A date in the past gives a negative number.
    """
    if header.isascii() and header.isdigit():
        return float(header)
    date = parsedate_tz(header)
    try:
        return mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        return 0.0
