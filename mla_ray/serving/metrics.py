"""Prometheus metrics of the server. No label contains a user's text, id or address.

[Monitoring](docs/serving.md#monitoring) says how they are collected.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mla_ray.serving.exporters import Exporter
from mla_ray.serving.load import Load

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})


class Metrics:
    """Metrics of the HTTP app."""

    def __init__(self, exporter: Exporter) -> None:
        self._requests = exporter.counter(
            "mla_http_requests", "Number of answered requests", ["method", "route", "status"]
        )
        self._seconds = exporter.histogram(
            "mla_http_request_seconds",
            "Duration of a request in seconds, from its first byte to the last byte of the answer",
            ["route"],
            BUCKETS,
        )
        self._problems = exporter.counter(
            "mla_http_problems",
            "Number of requests that were answered with a problem, by its kind",
            ["route", "problem"],
        )
        self._in_flight = exporter.gauge(
            "mla_http_requests_in_flight", "Number of requests in progress", []
        )
        self._texts = exporter.counter("mla_texts_encoded", "Number of encoded texts", ["language"])
        self._queued = exporter.gauge(
            "mla_queue_items", "Number of items that wait for a batch", ["queue"]
        )

    def request(
        self, method: str, route: str, status: int, seconds: float, problem: str | None = None
    ) -> None:
        """Record an answered request.

        Args:
            method: HTTP method. Unusual methods are recorded as `other`.
            route: Path template such as `/v1/images/{image_id}`, never the path itself.
            status: HTTP status of the answer.
            seconds: Duration in seconds.
            problem: Kind of the problem that was the answer, or None.

        """
        method = method if method in METHODS else "other"
        self._requests(1, {"method": method, "route": route, "status": str(status)})
        self._seconds(seconds, {"route": route})
        if problem is not None:
            self._problems(1, {"route": route, "problem": problem})

    def in_flight(self, requests: int) -> None:
        """Set the number of requests in progress."""
        self._in_flight(requests, {})

    def texts(self, language: str, count: int) -> None:
        """Add `count` encoded texts of a language."""
        self._texts(count, {"language": language})

    def queued(self, items: Mapping[str, int]) -> None:
        """Set the number of items that wait, by queue."""
        for queue, count in items.items():
            self._queued(count, {"queue": queue})


class RecordedLoad(Load):
    """Load of a replica that is also a metric: how long calls wait, and how busy the replica is."""

    def __init__(self, exporter: Exporter) -> None:
        super().__init__()
        self._wait = exporter.histogram(
            "mla_wait_seconds",
            "Mean time in seconds that the items of a call waited until they were processed",
            [],
            BUCKETS,
        )
        self._processed = exporter.counter("mla_items", "Number of processed items", [])
        self._busy = exporter.counter(
            "mla_busy_seconds", "Time in seconds spent on calls, as a sum over the calls", []
        )

    def waited(self, seconds: float, items: int = 1) -> None:
        """Record that the processing of a call's items begins after a time of waiting."""
        super().waited(seconds, items)
        self._wait(max(seconds, 0.0), {})
        if items:
            self._processed(items, {})

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time in the context as busy."""
        began = time.perf_counter()
        try:
            with super().busy():
                yield
        finally:
            self._busy(time.perf_counter() - began, {})


class IndexMetrics:
    """Metrics of the index."""

    def __init__(self, exporter: Exporter) -> None:
        self._up = exporter.gauge(
            "mla_index_up", "1 if the index answered the last check, else 0", []
        )

    @contextmanager
    def check(self) -> Iterator[None]:
        """Record whether the check in the context succeeds. Its exception is passed on."""
        try:
            yield
        except BaseException:
            self._up(0, {})
            raise
        self._up(1, {})
