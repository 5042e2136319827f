"""Reads expressions of Prometheus."""

from collections import defaultdict

import promql_parser


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
