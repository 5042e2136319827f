"""Clients of both kinds, and a server that follows the contract."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.serving.client.contract_server import Ask, Server, listen, picture


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    server, sock = Server(), socket.socket()
    sock.bind(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    running = listen(server, sock)
    while not running.started:
        time.sleep(0.01)
    yield server
    running.should_exit = True


@pytest.fixture
def server(served: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("MLA_API_TOKEN", raising=False)
    served.reset()
    return served


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    return Ask(request.param, server.url)


@pytest.fixture(scope="module")
def png() -> bytes:
    return picture("PNG")
