"""Where metrics go: a registry of this process, or Ray, which collects them from all replicas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Record = Callable[[float, Mapping[str, str]], None]
"""Records a value with its labels: adds to a counter, sets a gauge, or feeds a histogram."""


class Exporter(Protocol):
    """Maker of metrics. Each method declares one metric and returns the function that records."""

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a counter. Its exported name ends with `_total`."""
        ...

    def gauge(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a gauge."""
        ...

    def histogram(
        self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Record:
        """Declare a histogram. `buckets` are upper bounds, without infinity."""
        ...


class Registry:
    """Metrics of this process, for its own `/metrics`.

    Args:
        replica: Value of the label `replica`, which every metric has. Any replica may answer a
            scrape, so the label distinguishes the series.

    """

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._registry = CollectorRegistry()

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a counter."""
        made = Counter(name, description, ["replica", *labels], registry=self._registry)
        return lambda value, given: made.labels(replica=self._replica, **given).inc(value)

    def gauge(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a gauge."""
        made = Gauge(name, description, ["replica", *labels], registry=self._registry)
        return lambda value, given: made.labels(replica=self._replica, **given).set(value)

    def histogram(
        self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Record:
        """Declare a histogram."""
        made = Histogram(
            name, description, ["replica", *labels], registry=self._registry, buckets=buckets
        )
        return lambda value, given: made.labels(replica=self._replica, **given).observe(value)

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class RayExporter:
    """Metrics of a replica of Ray Serve, at the metrics port of its node.

    Ray adds the labels `application`, `deployment` and `replica`, puts `ray_` in front of each
    name, and exports new values some seconds later.
    """

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a counter."""
        from ray.serve.metrics import Counter

        record: Record = Counter(name, description, tuple(labels)).inc
        return record

    def gauge(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a gauge."""
        from ray.serve.metrics import Gauge

        record: Record = Gauge(name, description, tuple(labels)).set
        return record

    def histogram(
        self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Record:
        """Declare a histogram."""
        from ray.serve.metrics import Histogram

        record: Record = Histogram(name, description, list(buckets), tuple(labels)).observe
        return record


class Several:
    """Metrics that several exporters get."""

    def __init__(self, *exporters: Exporter) -> None:
        self._exporters = exporters

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a counter."""
        return self._each(lambda exporter: exporter.counter(name, description, labels))

    def gauge(self, name: str, description: str, labels: Sequence[str]) -> Record:
        """Declare a gauge."""
        return self._each(lambda exporter: exporter.gauge(name, description, labels))

    def histogram(
        self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Record:
        """Declare a histogram."""
        return self._each(lambda exporter: exporter.histogram(name, description, labels, buckets))

    def _each(self, declare: Callable[[Exporter], Record]) -> Record:
        records = [declare(exporter) for exporter in self._exporters]

        def record(value: float, labels: Mapping[str, str]) -> None:
            for each in records:
                each(value, labels)

        return record
