"""Promises of what is sent again, when, and how often."""

import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
import uvicorn

from mla_ray.serving.client_errors import (
    ApiError,
    Busy,
    Unreachable,
)
from mla_ray.serving.client_retries import Retry, retry_after_s
from tests.serving.client.contract_server import (
    BROKEN,
    QUICK,
    Ask,
    Fault,
    Server,
    listen,
    picture,
    problem,
    records,
)

CALLS = [
    ("search", ("dog",)),
    ("search_image", (picture("PNG"),)),
    ("embed_texts", (["dog"],)),
    ("embed_image", (picture("PNG"),)),
    ("put_image", ("id", picture("PNG"))),
    ("languages", ()),
    ("collections", ()),
    ("list_images", ()),
    ("list_captions", ()),
    ("delete_image", ("id",)),
    ("ingest", (records(1),)),
]


@pytest.mark.parametrize(("method", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_every_call_goes_again_after_a_busy_server_and_a_broken_connection(
    ask: Ask, server: Server, method: str, arguments: tuple[Any, ...]
) -> None:
    server.faults.extend([problem(503, "busy", Retry_After="1"), BROKEN, Fault(429)])
    ask(method, *arguments)
    assert len(server.seen) == 4
    assert len({(seen.path, seen.query, seen.body) for seen in server.seen}) == 1


def test_attempts_have_an_end(ask: Ask, server: Server) -> None:
    server.faults.extend([problem(503, "at its limit")] * 9)
    with pytest.raises(Busy, match="503 Title: at its limit"):
        ask("languages")
    assert len(server.seen) == QUICK.attempts
    server.reset()
    server.faults.extend([BROKEN] * 9)
    with pytest.raises(Unreachable, match=server.url):
        ask("languages")
    assert len(server.seen) == QUICK.attempts


@dataclass(frozen=True)
class Recorded(Retry):
    """Waits for nothing, and keeps what servers asked for."""

    asked: list[float] = field(default_factory=list)

    def wait_s(self, attempt: int, asked_s: float = 0.0) -> float:
        self.asked.append(asked_s)
        return 0.0


def test_what_a_server_asks_for_is_what_is_waited_for(ask: Ask, server: Server) -> None:
    retry = Recorded()
    server.faults.append(problem(503, "busy", Retry_After="7"))
    server.faults.append(problem(429, "slow down"))
    ask("languages", retry=retry)
    assert retry.asked == [7.0, 0.0]
    assert len(server.seen) == 3


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("0") == 0
    assert retry_after_s("120") == 120
    hour = retry_after_s(formatdate(time.time() + 3600, usegmt=True))
    assert 3000 < hour <= 3600


@pytest.mark.parametrize(
    "value",
    ["99999999", "9" * 400, formatdate(time.time() + 9e6, usegmt=True)],
    ids=["seconds", "digits", "date"],
)
def test_no_server_makes_the_client_wait_for_long(value: str) -> None:
    assert QUICK.wait_s(1, retry_after_s(value)) == QUICK.longest_s


@pytest.mark.parametrize("value", ["", "-1", "soon", "1e3", "٣", "0 Foo 99999"])
def test_a_retry_after_that_says_nothing_is_passed_over(value: str) -> None:
    assert retry_after_s(value) == 0


def test_a_retry_after_in_the_past_asks_for_no_wait() -> None:
    retry = Retry(first_s=0.01)
    assert retry.wait_s(1, retry_after_s(formatdate(0, usegmt=True))) <= 0.01


def test_waits_double_up_to_the_longest_and_are_never_quite_the_same() -> None:
    retry = Retry(first_s=1, longest_s=6)
    waits = [[retry.wait_s(attempt) for _ in range(50)] for attempt in (1, 2, 3, 9)]
    for many, (least, most) in zip(waits, [(0.5, 1), (1, 2), (2, 4), (6, 6)], strict=True):
        assert all(least <= wait <= most for wait in many)
    assert len(set(waits[0])) > 40
    assert 3.5 <= retry.wait_s(1, asked_s=3) <= 4
    with pytest.raises(ValueError, match="attempts is 0"):
        Retry(attempts=0)


def free_port() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))  # bound, but nobody listens: connections are refused
    return sock


def test_a_server_that_is_not_there_is_named(ask: Ask) -> None:
    with free_port() as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(Unreachable, match=f"{url}: .*is a server running there"):
            ask("languages", url=url)


def test_a_server_that_comes_up_in_time_is_found(ask: Ask) -> None:
    late, sock = Server(), free_port()
    running: list[uvicorn.Server] = []
    timer = threading.Timer(0.3, lambda: running.append(listen(late, sock)))
    timer.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        ask("languages", url=url, retry=Retry(attempts=60, first_s=0.1, longest_s=0.2))
    finally:
        timer.join()
        running[0].should_exit = True
    assert len(late.seen) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog refuses elsewhere")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_server_that_takes_no_connection_is_not_there(kind: str) -> None:
    with socket.socket() as sock, socket.socket() as first:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        first.connect(sock.getsockname())  # nobody accepts it, and there is room for no other
        ask = Ask(kind, f"http://127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(Unreachable, match="is a server running there"):
            ask("languages", connect_s=0.1, retry=Retry(attempts=2, first_s=0.01))


def test_silence_ends_in_time_and_is_not_asked_again(ask: Ask, server: Server) -> None:
    server.faults.append(Fault(silent_s=1.0))
    with pytest.raises(TimeoutError, match=r"no answer to GET /v1/languages within 0.2 s"):
        ask("languages", read_s=0.2)
    assert len(server.seen) == 1


def test_an_ingest_may_take_longer(ask: Ask, server: Server) -> None:
    server.faults.append(Fault(200, "{}", silent_s=0.5))
    with pytest.raises(ApiError, match="not an answer"):  # it came, and was read
        ask("ingest", records(1), read_s=0.2)
