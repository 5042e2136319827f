"""Prometheus metrics of one replica. No label contains a user's text, id or address."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT"})


class Metrics:
    """Metrics of one replica.

    The label `replica` distinguishes the series, as any replica may answer a scrape.
    """

    def __init__(self, replica: str = "local") -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "mla_http_requests",
            "Number of answered requests",
            ["replica", "method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mla_http_request_seconds",
            "Duration of a request in seconds, from its first byte to the last byte of the answer",
            ["replica", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._texts = Counter(
            "mla_texts_encoded",
            "Number of encoded texts",
            ["replica", "language"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "mla_http_requests_in_flight",
            "Number of requests in progress",
            ["replica"],
            registry=self._registry,
        ).labels(replica)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered request.

        Args:
            method: HTTP method. Unusual methods are recorded as `other`.
            route: Path template such as `/v1/images/{image_id}`, never the path itself.
            status: HTTP status of the answer.
            seconds: Duration in seconds.

        """
        method = method if method in METHODS else "other"
        self._requests.labels(self._replica, method, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def texts(self, language: str, count: int) -> None:
        """Add `count` encoded texts of a language."""
        self._texts.labels(self._replica, language).inc(count)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
