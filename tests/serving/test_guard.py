"""Promises of what stands before the app: sizes, token, names, rates, full queues, headers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

from mla_ray.serving.schemas import MAX_TEXTS, TOKEN_VARIABLE
from mla_ray.serving.service import Service
from mla_ray.serving.settings import Settings
from tests.serving.app_server import PNG, Server, Start, png_of, problem, wait_for


def test_bodies_are_bounded(server: Server) -> None:
    post = server.client.post
    many = {"inputs": [{"text": "x"}] * (MAX_TEXTS + 1)}
    problem(post("/v1/embeddings/text", json=many), 422, "invalid-request")
    huge = b" " * (5 << 20)
    json_ = {"Content-Type": "application/json"}
    problem(post("/v1/embeddings/text", content=huge, headers=json_), 413, "too-large")

    def chunks() -> Iterator[bytes]:  # a length is not said beforehand
        for _ in range(9):
            yield b"\0" * (1 << 20)

    answer = post("/v1/search/image", content=chunks(), headers=PNG)
    problem(answer, 413, "too-large")


def test_without_the_token_there_is_only_the_page_and_health(server: Server) -> None:
    del server.client.headers["Authorization"]
    for path in ("/v1/search?q=x", "/v1/languages", "/metrics", "/v1/images/a", "/openapi.json"):
        answer = server.get(path)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/page/app.js", "/healthz"):
        assert server.get(path).status_code == 200
    for wrong in ("Bearer s3cre", "Basic s3cret", "s3cret", "Bearer"):
        answer = server.client.get("/v1/languages", headers={"Authorization": wrong})
        problem(answer, 401, "unauthorized")


def test_without_a_token_only_loopback_is_served(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=TOKEN_VARIABLE):
        Settings(hosts=["*"]).token()
    assert Settings().token() is None


def test_a_page_elsewhere_cannot_reach_the_server_by_another_name(server: Server) -> None:
    answer = server.client.get("/v1/languages", headers={"Host": "evil.example"})
    problem(answer, 421, "wrong-host")


def test_a_client_has_a_rate(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    with start(rate="3/minute") as server:
        server.client.headers["Authorization"] = "Bearer t"
        answers = [server.get("/v1/languages") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        problem(answers[3], 429, "too-many-requests")
        assert int(answers[3].headers["retry-after"]) >= 1


def test_a_full_queue_answers_at_once_and_a_late_answer_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    with start(max_queue=1, timeout_s=5) as server, ThreadPoolExecutor(8) as pool:
        server.client.headers["Authorization"] = "Bearer t"
        assert server.get("/v1/search", q="Hund").status_code == 200
        gate = threading.Event()
        server.backend._torch_thread.submit(gate.wait)  # the encoder is busy
        asked = [pool.submit(server.get, "/v1/search", q="Hund") for _ in range(8)]
        answers = [future.result() for future in asked]
        gate.set()
        full = [answer for answer in answers if answer.status_code == 503]
        late = [answer for answer in answers if answer.status_code == 504]
        assert len(full) + len(late) == 8
        assert len(full) >= 5
        for answer in full:
            problem(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        problem(late[0], 504, "timeout")
        assert server.get("/v1/search", q="Hund").status_code == 200


@contextmanager
def long_wait(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[Server], httpx2.Response],
    queue: str,
    items: int,
    **settings: int,
) -> Iterator[Server]:
    """A server that knows that the items of one `ask` take 2 s, while one is at work and one waits.

    Afterwards both are answered.
    """
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    with start(max_wait_s=0.5, **settings) as server, ThreadPoolExecutor(2) as pool:
        server.client.headers["Authorization"] = "Bearer t"
        server.backend._torch_thread.submit(time.sleep, 2)
        assert ask(server).status_code == 200
        gate = threading.Event()
        server.backend._torch_thread.submit(gate.wait)
        asked = [pool.submit(ask, server) for _ in range(2)]
        service: Service = server.client.app.state.service  # type: ignore[attr-defined]
        try:
            wait_for(lambda: service.queued()[queue] == items)
            yield server
        finally:
            gate.set()
        assert [future.result().status_code for future in asked] == [200, 200]


def test_a_long_wait_is_refused_before_the_body_is_read(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = {"inputs": [{"text": "Hund", "language": "de"}] * 4}

    def embed(server: Server) -> httpx2.Response:
        return server.client.post("/v1/embeddings/text", json=four)

    with long_wait(start, monkeypatch, embed, "texts", 4, max_batch=4) as server:
        answer = server.client.post("/v1/embeddings/text", content=b"no JSON")
        problem(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 2
        assert server.get("/v1/languages").status_code == 200


def test_an_image_that_would_wait_long_is_refused_before_it_is_read(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(server: Server, content: bytes = png_of("red")) -> httpx2.Response:
        return server.client.put("/v1/images/new", content=content, headers=PNG)

    with long_wait(start, monkeypatch, put, "images", 1, max_images=1) as server:
        problem(put(server, b"no image"), 503, "overloaded")
        assert server.get("/v1/images/other").status_code == 404, "nothing to encode"


def test_every_answer_carries_the_security_headers(server: Server) -> None:
    for path in ("/", "/page/app.js", "/v1/languages", "/nothing", "/v1/search"):
        headers = server.get(path).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert headers["x-content-type-options"] == "nosniff"
