"""Promises of the metrics: requests and queues are counted, nothing that users wrote is kept."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mla_ray.serving.exporters import Registry, Several
from mla_ray.serving.metrics import IndexMetrics, Metrics, RecordedLoad
from tests.serving.app_server import Server, wait_for

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values(page: str) -> Values:
    """The values of a page, by name and labels without the replica's."""
    return {
        (sample.name, frozenset(sample.labels.items() - {("replica", "local")})): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(source: Server | Registry, name: str, **labels: str) -> float | None:
    page = source.render().decode() if isinstance(source, Registry) else metrics_of(source)
    return values(page).get((name, frozenset(labels.items())))


def metrics_of(server: Server) -> str:
    page: str = server.get("/metrics").text
    return page


def test_metrics_count_requests_and_hold_nothing_that_users_wrote(server: Server) -> None:
    server.get("/v1/search", q="Geheimnis", language="de")
    server.get("/v1/search", q="Geheimnis", language="xx")
    server.get("/v1/Geheimnis")
    server.client.request("GEHEIMNIS", "/v1/search")
    text = metrics_of(server)
    assert "geheimnis" not in text.lower()
    line = (
        'mla_http_requests_total{method="GET",replica="local",route="/v1/search",status="200"} 1.0'
    )
    assert line in text
    assert 'mla_texts_encoded_total{language="de",replica="local"} 1.0' in text


def test_problems_are_counted_by_their_kind(server: Server) -> None:
    server.get("/v1/search", q="x", language="xx")
    server.get("/v1/search", q="x", language="xx")
    server.get("/v1/search", q="x", k=1000)
    server.client.get("/v1/search", headers={"Host": "evil.example"})
    server.get("/v1/search", q="x", language="de")

    def problems(problem: str, route: str = "/v1/search") -> float | None:
        return value(server, "mla_http_problems_total", route=route, problem=problem)

    assert problems("unknown-language") == 2
    assert problems("invalid-request") == 1
    assert problems("wrong-host", route="other") == 1  # refused before it had a route
    assert "None" not in metrics_of(server)


def test_a_failure_counts_as_500(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(server.backend, "languages", fail)
    with pytest.raises(RuntimeError):  # the test client passes it on, and a server answers 500
        server.get("/v1/languages")
    route = "/v1/languages"
    assert value(server, "mla_http_requests_total", method="GET", route=route, status="500") == 1
    assert value(server, "mla_http_problems_total", route=route, problem="internal-error") == 1


def test_what_waits_for_a_batch_is_shown_until_it_is_gone(server: Server) -> None:
    gate = threading.Event()

    def waiting() -> float | None:
        return value(server, "mla_queue_items", queue="texts")

    with ThreadPoolExecutor(4) as pool:
        server.backend._torch_thread.submit(gate.wait)  # the encoder is busy
        query = {"q": "Hund", "language": "de"}
        asked = [pool.submit(server.get, "/v1/search", **query) for _ in range(4)]
        with opened(gate):
            wait_for(lambda: waiting() == 3)  # the first is in the call
        assert [future.result().status_code for future in asked] == [200] * 4
    wait_for(lambda: waiting() == 0)


@contextmanager
def opened(gate: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        gate.set()


def test_the_load_is_sampled_and_counted() -> None:
    registry = Registry("local")
    work = RecordedLoad(registry)
    work.waited(0.2, 3)
    work.waited(-1e-9, 1)  # of a clock that was read a moment earlier
    with pytest.raises(RuntimeError), work.busy():
        raise RuntimeError("a fault takes time, too")
    assert value(registry, "mla_wait_seconds_count") == 2
    assert value(registry, "mla_wait_seconds_sum") == 0.2
    assert value(registry, "mla_wait_seconds_bucket", le="0.1") == 1
    assert value(registry, "mla_items_total") == 4
    busy = value(registry, "mla_busy_seconds_total")
    assert busy is not None
    assert busy > 0
    sample = work.sample()
    assert sample["wait_s"] == pytest.approx(0.15)
    assert sample["busy"] > 0


def test_the_index_is_up_while_its_checks_succeed() -> None:
    registry = Registry("local")
    index = IndexMetrics(registry)
    with index.check():
        pass
    assert value(registry, "mla_index_up") == 1
    with pytest.raises(ConnectionError), index.check():
        raise ConnectionError
    assert value(registry, "mla_index_up") == 0


def test_several_exporters_get_the_same() -> None:
    registries = [Registry("local"), Registry("local")]
    metrics = Metrics(Several(*registries))
    metrics.texts("de", 2)
    metrics.in_flight(1)
    metrics.request("PURGE", "/v1/search", 405, 0.1, "method-not-allowed")
    pages = [values(registry.render().decode()) for registry in registries]
    created = {key for page in pages for key in page if key[0].endswith("_created")}
    first, second = ({key: page[key] for key in page.keys() - created} for page in pages)
    assert first == second
    assert first["mla_texts_encoded_total", frozenset({("language", "de")})] == 2
    assert value(
        registries[0], "mla_http_requests_total", method="other", route="/v1/search", status="405"
    )
