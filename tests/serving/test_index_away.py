"""Promises for the time in which the Qdrant server of the index is gone or frozen."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn

from mla_ray.serving.app import create_app
from mla_ray.serving.breaker import IndexUnavailable
from mla_ray.serving.client import Client
from mla_ray.serving.client_retries import Retry
from mla_ray.serving.deployments import Index
from mla_ray.serving.exporters import Registry
from mla_ray.serving.metrics import IndexMetrics
from tests.serving.app_server import NDJSON, PNG, Server, Start, ingest, png_of, problem
from tests.support.qdrant import OwnQdrant, own_qdrant

QUERY = {"q": "ein Hund", "language": "de", "k": 5}
FAULTS = pytest.mark.parametrize("fault", ["kill", "freeze"])


def wait_until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within 60 s: {what}")


def test_an_index_that_is_away_is_told_and_found_again_when_it_is_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"image_id": "set/00", "language": "de", "caption": "ein Hund"}
    before = server.get("/v1/search", **QUERY).json()

    def silent(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("no Qdrant server answers at http://10.1.2.3:6333")

    with monkeypatch.context() as fault:
        for method in ("search_all", "hashes", "upsert", "languages", "sources", "ping"):
            fault.setattr(f"mla_ray.index.collection.CaptionIndex.{method}", silent)
        answers = [
            server.get("/v1/search", **QUERY),
            server.get("/v1/languages"),
            server.client.post("/v1/captions", content=json.dumps(line), headers=NDJSON),
            server.client.put("/v1/images/new", content=png_of("red"), headers=PNG),
        ]
        for answer in answers:
            assert "10.1.2.3" not in problem(answer, 503, "index-unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        health = server.get("/healthz")
        assert health.status_code == 503
        assert health.json()["parts"] == {"text": "ok", "image": "ok", "index": "IndexUnavailable"}
        embeddings = {"inputs": [{"text": "ein Hund", "language": "de"}]}
        assert server.client.post("/v1/embeddings/text", json=embeddings).status_code == 200
    wait_until(lambda: server.get("/healthz").status_code == 200, "the index is back")
    assert server.get("/v1/search", **QUERY).json() == before
    assert ingest(server, line)["written"] == 1


def test_a_replica_is_not_ill_because_its_server_is_away() -> None:
    """Ray Serve would replace it again and again, by replicas that cannot start."""
    faults: list[Exception] = [IndexUnavailable("away"), RuntimeError("broken")]

    def check() -> None:
        raise faults[0]

    index = object.__new__(Index)
    index._metrics = IndexMetrics(Registry("replica"))
    index._engine = SimpleNamespace(check=check, close=lambda: None)  # type: ignore[assignment]
    asyncio.run(index.check_health())
    with pytest.raises(IndexUnavailable):
        asyncio.run(index.check())
    faults.pop(0)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(index.check_health())


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[OwnQdrant]:
    with own_qdrant(tmp_path / "qdrant") as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def url(
    request: pytest.FixtureRequest, qdrant: OwnQdrant, start: Start, pngs: list[bytes]
) -> Iterator[str]:
    """The URL of the app on uvicorn, over the test's own Qdrant, with twelve images."""
    index = qdrant.urls[request.param]
    with start(index=index, index_timeout_s=3, hosts=["127.0.0.1"]) as server:
        app = create_app(server.backend, server.settings)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
            thread.start()
            wait_until(lambda: running.started, "the app runs")
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                for number, png in enumerate(pngs):
                    place = f"{url}/v1/images/set/{number:02}"
                    assert httpx2.put(place, content=png, headers=PNG).status_code == 200
                yield url
            finally:
                running.should_exit = True
                thread.join()


class Searches:
    """Eight threads that search while the context is open, and the answers that they get."""

    def __init__(self, url: str) -> None:
        self.answers: list[httpx2.Response] = []
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._search) for _ in range(8)]

    def __enter__(self) -> "Searches":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, status: int) -> None:
        """Wait until every thread can have had an answer of this status since the call."""
        seen = len(self.answers)
        wait_until(
            lambda: [a.status_code for a in self.answers[seen:]].count(status) >= 16,
            f"answers with {status}",
        )

    def _search(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.wait(0.01):
                self.answers.append(client.get("/v1/search", params=QUERY))


def strike(qdrant: OwnQdrant, fault: str) -> Callable[[], None]:
    """Kill or freeze the server, and return what brings it back."""
    if fault == "kill":
        qdrant.kill()
        return qdrant.start
    qdrant.freeze()
    return qdrant.thaw


@pytest.mark.server
@FAULTS
def test_searches_meet_503_while_the_server_is_away_and_the_same_hits_after_it(
    url: str, qdrant: OwnQdrant, fault: str
) -> None:
    before = httpx2.get(f"{url}/v1/search", params=QUERY).json()
    assert len(before["hits"]) == 5
    with Searches(url) as searches:
        searches.wait_for(200)
        come_back = strike(qdrant, fault)
        searches.wait_for(503)
        health = httpx2.get(f"{url}/healthz", timeout=60)
        come_back()
        wait_until(lambda: httpx2.get(f"{url}/healthz").status_code == 200, "healthy again")
        searches.wait_for(200)
    assert health.status_code == 503
    assert health.json()["parts"] == {"text": "ok", "image": "ok", "index": "IndexUnavailable"}
    assert {answer.status_code for answer in searches.answers} == {200, 503}
    for answer in searches.answers:
        if answer.status_code == 503:
            problem(answer, 503, "index-unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert answer.json() == before


@pytest.mark.server
@FAULTS
def test_an_ingest_goes_on_after_the_server_is_back_and_loses_nothing(
    url: str, qdrant: OwnQdrant, fault: str
) -> None:
    total, broken = 600, threading.Event()

    def records() -> Iterator[dict[str, str]]:
        for number in range(total):
            if number == total // 2:  # the chunks before are acknowledged
                broken.come_back = strike(qdrant, fault)  # type: ignore[attr-defined]
                broken.set()
            yield {"image_id": f"set/{number:03}", "language": "de", "caption": f"Hund {number}"}

    def repair() -> None:
        broken.wait()
        wait_until(lambda: httpx2.get(f"{url}/healthz", timeout=60).status_code == 503, "away")
        broken.come_back()  # type: ignore[attr-defined]

    repairing = threading.Thread(target=repair)
    repairing.start()
    with Client(url, retry=Retry(attempts=12, longest_s=5)) as client:
        result = client.ingest(records(), chunk=50)
        repairing.join()
        counts = {row.language: row.captions for row in client.languages().languages}
    assert (result.written, result.rejected) == (total, 0)
    assert counts["de"] == total


@pytest.mark.server
@FAULTS
def test_no_line_is_acknowledged_that_is_not_stored(
    url: str, qdrant: OwnQdrant, fault: str
) -> None:
    """One request of several batches, whose server fails before the second one."""
    lines = [
        json.dumps({"image_id": f"set/{n:03}", "language": "de", "caption": f"Hund {n}"})
        for n in range(300)
    ]
    come_back: list[Callable[[], None]] = []

    def body() -> Iterator[bytes]:
        yield ("\n".join(lines[:140]) + "\n").encode()
        wait_until(lambda: _captions(url) == 128, "the first batch is written")
        come_back.append(strike(qdrant, fault))
        yield "\n".join(lines[140:]).encode()

    answer = httpx2.post(f"{url}/v1/captions", content=body(), headers=NDJSON, timeout=60)
    problem(answer, 503, "index-unavailable")
    come_back[0]()
    wait_until(lambda: httpx2.get(f"{url}/healthz").status_code == 200, "healthy again")
    assert _captions(url) >= 128
    body_again = "\n".join(lines).encode()
    again = httpx2.post(f"{url}/v1/captions", content=body_again, headers=NDJSON, timeout=60)
    assert again.json()["written"] == 300
    assert _captions(url) == 300


def _captions(url: str) -> int:
    """Return the number of German captions."""
    rows = httpx2.get(f"{url}/v1/languages", timeout=60).json()["languages"]
    return next(row["captions"] for row in rows if row["language"] == "de")
