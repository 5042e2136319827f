"""What Prometheus does: ask targets for their metrics, and read expressions."""

import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = dict[str, str]
Series = dict[str, list[Labels]]
"""The labels of all series, by the name of their metric."""


def scraped(targets: Iterable[str]) -> tuple[Series, str]:
    """All series of some `host:port`, and the pages that they are on."""
    series: Series = {}
    pages = ""
    for target in targets:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            page = answer.read().decode()
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


def used(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, with the labels that it selects, groups or joins them by."""
    found: dict[str, set[str]] = defaultdict(set)
    _collect(promql_parser.parse(expression), frozenset(), found)
    return found


def _collect(expr: promql_parser.Expr, labels: frozenset[str], found: dict[str, set[str]]) -> None:
    match expr:
        case promql_parser.VectorSelector():
            found[expr.name] |= labels | {matcher.name for matcher in expr.matchers.matchers}
        case promql_parser.MatrixSelector():
            _collect(expr.vector_selector, labels, found)
        case promql_parser.AggregateExpr():
            by = frozenset(expr.modifier.labels) if expr.modifier else frozenset()
            _collect(expr.expr, by, found)
        case promql_parser.BinaryExpr():
            matching = expr.modifier.matching if expr.modifier else None
            on = frozenset(matching.labels) if matching else frozenset()
            for side in (expr.lhs, expr.rhs):
                _collect(side, labels | on, found)
        case promql_parser.Call():
            for argument in expr.args:
                _collect(argument, labels, found)
        case promql_parser.ParenExpr() | promql_parser.SubqueryExpr() | promql_parser.UnaryExpr():
            _collect(expr.expr, labels, found)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise TypeError(f"{type(expr).__name__} in {expr}")
