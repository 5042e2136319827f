"""A server's HTTP API from Python: `Client`, and `AsyncClient` with the same methods awaited.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search("Regenschirm", language="de").hits:
            print(f"{hit.score:.3f}  {hit.image_id}")

`client_calls` says what a request to each endpoint is; the two clients differ only in how they send
one. What they raise is in `client_errors`, when they send again in `client_retries`.

Shapes: N texts, E joint embedding size.
"""

import asyncio
import ipaddress
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from importlib.metadata import version
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar, overload

import httpx2

from mla_ray.serving import client_calls as calls
from mla_ray.serving.client_calls import Call, Embedded, Texts, Vectors
from mla_ray.serving.client_errors import Unreachable, api_error, printable
from mla_ray.serving.client_ingest import CHUNK, IngestStream, Record
from mla_ray.serving.client_retries import (
    DEFAULT_RETRY,
    RETRIED_ERRORS,
    RETRIED_STATUSES,
    Retry,
    retry_after_s,
)
from mla_ray.serving.schemas import TOKEN_VARIABLE, IngestResult

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Endpoint(Generic[P, T]):
    """A function that says what to call, as a method that calls it: at once, or awaited."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> Callable[P, Call[T]]: ...
    @overload
    def __get__(self, client: "Client", owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: object) -> Callable[P, Awaitable[T]]: ...
    def __get__(
        self, client: "Client | AsyncClient | None", owner: object
    ) -> Callable[P, Call[T] | T | Awaitable[T]]:
        if client is None:
            return self._build  # for help() and signatures

        def call(*args: P.args, **kwargs: P.kwargs) -> T | Awaitable[T]:
            return client.run(self._build(*args, **kwargs))

        return call


class Api(ABC):
    """Every endpoint of a server that is one request."""

    search = Endpoint(calls.search)
    search_image = Endpoint(calls.search_image)
    embed_image = Endpoint(calls.embed_image)
    put_image = Endpoint(calls.put_image)
    get_image = Endpoint(calls.get_image)
    languages = Endpoint(calls.languages)
    health = Endpoint(calls.health)

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        allow_insecure: bool = False,
        connect_s: float = 5.0,
        read_s: float = 60.0,
        retry: Retry = DEFAULT_RETRY,
    ) -> None:
        """`url` is the server's: `http://127.0.0.1:8000`.

        The token is that of MLA_API_TOKEN if none is given, and "" is none. It is not sent over
        plain http to another machine unless `allow_insecure`. `read_s` is the longest silence
        before an answer; an ingest may take ten times that.
        """
        base, loopback = _base_url(url)
        token = (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip()
        if not all("!" <= letter <= "~" for letter in token):
            raise ValueError(
                f"the token (token= or {TOKEN_VARIABLE}) has characters that no header may"
            )
        if token and base.scheme == "http" and not (loopback or allow_insecure):
            raise ValueError(
                f"{base}: the token would go over plain http, for all between to read; use "
                "https (or, on a network that is yours alone, Client(…, allow_insecure=True))"
            )
        self.url = str(base)
        headers = {"User-Agent": f"mla-ray/{version('mla-ray')}"}
        self._connect_s, self._read_s = connect_s, read_s
        self._retry = retry
        # No proxy stands before one's own machine, and none is to be handed the token.
        self._open(headers | ({"Authorization": f"Bearer {token}"} if token else {}), not loopback)

    @abstractmethod
    def _open(self, headers: dict[str, str], trust_env: bool) -> None: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _request(self, http: httpx2.Client | httpx2.AsyncClient, call: Call[T]) -> httpx2.Request:
        content_type = {"Content-Type": call.content_type} if call.content_type else {}
        read_s = self._read_s * call.read_timeouts
        timeout = httpx2.Timeout(
            connect=self._connect_s, read=read_s, write=self._read_s, pool=None
        )
        return http.build_request(
            call.method,
            call.path,
            params=dict(call.params),
            content=call.body,
            headers=content_type,
            timeout=timeout,
        )

    def _wait_after_response(self, call: Call[T], response: httpx2.Response, attempt: int) -> float:
        """Seconds before the next attempt; raises if there is to be none."""
        if response.status_code not in RETRIED_STATUSES or attempt >= self._retry.attempts:
            raise api_error(response)
        asked_s = retry_after_s(response.headers.get("Retry-After", ""))
        wait_s = self._retry.wait_s(attempt, asked_s)
        log.info("%s %s: %d; again in %.1f s", call.method, call.path, response.status_code, wait_s)
        return wait_s

    def _wait_after_error(self, call: Call[T], error: httpx2.RequestError, attempt: int) -> float:
        """As `_wait_after_response`, where none came."""
        retried = isinstance(error, RETRIED_ERRORS)
        if isinstance(error, httpx2.TimeoutException) and not retried:
            seconds = self._read_s * call.read_timeouts
            less = "; send less at a time, or" if call.read_timeouts > 1 else ";"
            raise TimeoutError(
                f"{self.url}: no answer to {call.method} {call.path} within {seconds:g} s"
                f"{less} raise read_s"
            ) from error
        if not retried or attempt >= self._retry.attempts:
            what = printable(str(error)) or type(error).__name__
            raise Unreachable(f"{self.url}: {what}; is a server running there?") from error
        wait_s = self._retry.wait_s(attempt)
        kind = type(error).__name__
        log.info("%s %s: %s; again in %.1f s", call.method, call.path, kind, wait_s)
        return wait_s


class Client(Api):
    """A server's API. Threads may share one. Close it, or use it as a context."""

    def _open(self, headers: dict[str, str], trust_env: bool) -> None:
        self._http = httpx2.Client(base_url=self.url, headers=headers, trust_env=trust_env)

    def run(self, call: Call[T]) -> T:
        """Send a call, again as often as it may be, and read its answer."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._http.send(self._request(self._http, call))
            except httpx2.RequestError as error:
                wait_s = self._wait_after_error(call, error, attempt)
            else:
                if call.is_answered_by(response):
                    return call.answer(response)
                wait_s = self._wait_after_response(call, response, attempt)
            time.sleep(wait_s)

    def embed(self, texts: Texts, language: str = "en") -> Embedded:
        """Unit vectors [N, E] of any number of texts, and how much of each text is unknown [N].

        A string is one text, [1, E]; no texts are [0, E]. `language` is that of the plain strings;
        a `TextInput` says its own.
        """
        return calls.stack([self.run(call) for call in calls.embed_texts(texts, language)])

    def embed_texts(self, texts: Texts, language: str = "en") -> Vectors:
        """The vectors of `embed` alone: [N, E]."""
        return self.embed(texts, language).vectors

    def ingest(self, records: Iterable[Record], *, chunk: int = CHUNK) -> IngestResult:
        """Embed captions and write them to the collection `captions`, `chunk` at a time.

        No more than a chunk is held in memory. Rejected records are counted, and the first named
        by their place in `records`, from 1. After an exception, what was sent before stays
        written: ingest the same again, what is there already does not change.
        """
        stream = IngestStream(chunk)
        for call in stream.calls(records):
            stream.add(self.run(call))
        return stream.result

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(Api):
    """A server's API, awaited. Tasks of one event loop may share one. Close it, or use it so."""

    def _open(self, headers: dict[str, str], trust_env: bool) -> None:
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=trust_env)

    async def run(self, call: Call[T]) -> T:
        """As `Client.run`."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._http.send(self._request(self._http, call))
            except httpx2.RequestError as error:
                wait_s = self._wait_after_error(call, error, attempt)
            else:
                if call.is_answered_by(response):
                    return call.answer(response)
                wait_s = self._wait_after_response(call, response, attempt)
            await asyncio.sleep(wait_s)

    async def embed(self, texts: Texts, language: str = "en") -> Embedded:
        """As `Client.embed`."""
        return calls.stack([await self.run(call) for call in calls.embed_texts(texts, language)])

    async def embed_texts(self, texts: Texts, language: str = "en") -> Vectors:
        """As `Client.embed_texts`: [N, E]."""
        return (await self.embed(texts, language)).vectors

    async def ingest(
        self, records: Iterable[Record] | AsyncIterable[Record], *, chunk: int = CHUNK
    ) -> IngestResult:
        """As `Client.ingest`, of an async iterable too."""
        stream = IngestStream(chunk)
        async for call in stream.calls_async(records):
            stream.add(await self.run(call))
        return stream.result

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _base_url(url: str) -> tuple[httpx2.URL, bool]:
    """The server's address, and whether it is on this machine."""
    try:
        base = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"not a server's address: {error}") from error
    if base.userinfo:
        raise ValueError(
            f"a name or password in a server's address; a token goes into {TOKEN_VARIABLE}"
        )
    if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
        shown = url.partition("?")[0]  # a query may hold a secret
        raise ValueError(f"{shown!r} is not a server's address; one is http://127.0.0.1:8000")
    try:
        loopback = ipaddress.ip_address(base.host).is_loopback
    except ValueError:
        loopback = base.host == "localhost"
    return base, loopback
