"""What Prometheus does: asks targets for their metrics, again and again."""

import time
import urllib.request
from collections.abc import Callable, Iterable

from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]
Series = dict[str, list[Labels]]
"""The labels of all series, by the name of their metric."""


def scraped(targets: Iterable[str]) -> tuple[Series, str]:
    """All series of some `host:port`, and the pages that they are on."""
    series: Series = {}
    pages = ""
    for target in targets:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                page = answer.read().decode()
        except OSError:  # not yet there, as Prometheus would find, too
            continue
        pages += page
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                series.setdefault(sample.name, []).append(dict(sample.labels))
    return series, pages


def scraped_when(
    targets: Callable[[], list[str]], complete: Callable[[Series], bool], seconds: float = 60
) -> tuple[Series, str]:
    """The series as soon as they are complete, or after some seconds: Ray exports every ten."""
    deadline = time.monotonic() + seconds
    while True:
        series, pages = scraped(targets())
        if complete(series) or time.monotonic() > deadline:
            return series, pages
        time.sleep(1)


def deployments(series: Series, metric: str) -> set[str]:
    """The deployments that export a metric."""
    return {labels["deployment"] for labels in series.get(metric, [])}
