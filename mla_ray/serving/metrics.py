"""Prometheus metrics of one replica. Labels are ours alone: never a user's text, id or address."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT"})


class Metrics:
    """`replica` tells the series of several replicas apart, whichever answers a scrape."""

    def __init__(self, replica: str = "local") -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "mla_http_requests",
            "Requests answered",
            ["replica", "method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mla_http_request_seconds",
            "From the first byte in to the last byte out",
            ["replica", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._texts = Counter(
            "mla_texts_encoded",
            "Texts encoded",
            ["replica", "language"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "mla_http_requests_in_flight",
            "Requests under way",
            ["replica"],
            registry=self._registry,
        ).labels(replica)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is a template such as `/v1/images/{image_id}`, never a path."""
        method = method if method in METHODS else "other"
        self._requests.labels(self._replica, method, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def texts(self, language: str, count: int) -> None:
        self._texts.labels(self._replica, language).inc(count)

    def render(self) -> bytes:
        return generate_latest(self._registry)
