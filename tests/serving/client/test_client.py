"""Promises of a client's address and token."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from mla_ray.serving.client import AsyncClient, Client
from mla_ray.serving.client_errors import (
    ApiError,
    Unauthorized,
)
from tests.serving.client.contract_server import BROKEN, TOKEN, Ask, Fault, Server, problem


def test_the_token_is_the_one_given_or_that_of_the_environment(
    ask: Ask, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = TOKEN
    ask("languages", token=TOKEN)
    monkeypatch.setenv("MLA_API_TOKEN", f"{TOKEN}\n")
    ask("languages")
    ask("languages", token=TOKEN)
    with pytest.raises(Unauthorized):
        ask("languages", token="")
    assert "authorization" not in server.seen[-1].headers


def test_a_refused_token_is_said_with_the_name_of_its_variable(ask: Ask, server: Server) -> None:
    server.token = TOKEN
    with pytest.raises(Unauthorized, match=r"401 .*send the bearer token.*MLA_API_TOKEN"):
        ask("languages", token="another")  # noqa: S106
    assert len(server.seen) == 1


def test_the_token_is_shown_nowhere(ask: Ask, server: Server) -> None:
    shown: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    root, keep = logging.getLogger(), Keep()
    level = root.level
    root.addHandler(keep)
    root.setLevel(logging.DEBUG)
    echo = f'{{"you sent": "Bearer {TOKEN}"}}'
    told = problem(403, f"Authorization: Bearer {TOKEN}")
    server.faults.extend([BROKEN, Fault(400, echo), told])
    try:
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                ask("languages", token=TOKEN)
            shown += [str(caught.value), repr(caught.value), repr(caught.value.problem)]
    finally:
        root.removeHandler(keep)
        root.setLevel(level)
    shown.append(repr(Client(server.url, token=TOKEN)))
    assert any("again in" in line for line in shown)
    assert "***" in shown[-2]
    assert not any(TOKEN in line for line in shown)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_token_goes_over_plain_http_to_another_machine(
    kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLA_API_TOKEN", TOKEN)
    for url in ("http://mla.example", "http://192.168.0.7:8000", "http://localhost.example"):
        with pytest.raises(ValueError, match="plain http") as caught:
            kind(url)
        assert TOKEN not in str(caught.value)
        kind(url, allow_insecure=True)
        kind(url, token="")
    for url in ("https://mla.example", "http://localhost:1", "http://127.8.0.1", "http://[::1]:80"):
        kind(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is not a server's address"),
        ("ftp://host", "is not a server's address"),
        ("", "'' is not a server's address"),
        ("http://", "is not a server's address"),
        ("https://host/?key=s3cret-token", "'https://host/' is not a server's address"),
        ("https://me:s3cret-token@host", "a token goes into MLA_API_TOKEN"),
        ("http://host:port", "not a server's address"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Client(url)
    assert TOKEN not in str(caught.value)


def test_a_token_that_no_header_can_carry_is_refused_unseen() -> None:
    for token in ("s3cret-token\r\nX: y", "s3cret-tokén"):
        with pytest.raises(ValueError, match="characters") as caught:
            Client("http://127.0.0.1:1", token=token)
        assert "s3cret" not in str(caught.value)


def test_no_redirect_is_followed(ask: Ask, server: Server) -> None:
    server.faults.append(Fault(307, "", {"location": "http://elsewhere.example/v1/languages"}))
    with pytest.raises(ApiError, match=r"307 Temporary Redirect: it redirects to http://elsewhere"):
        ask("languages", token=TOKEN)
    assert len(server.seen) == 1


def test_no_proxy_comes_between_a_client_and_its_own_machine(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask("languages").native == "tiny"
