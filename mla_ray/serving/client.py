"""Python clients of a server's HTTP API: `Client` and `AsyncClient`.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search("Regenschirm", language="de").hits:
            print(f"{hit.score:.3f}  {hit.image_id}")

Both have the same methods; those of `AsyncClient` are awaited. `client_calls` defines the requests,
`client_errors` the exceptions and `client_retries` the retry policy.

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
from mla_ray.serving import client_collection_calls as collection_calls
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
    """Descriptor that turns a function that builds a `Call` into a client method that sends it.

    The method of a `Client` returns the result. That of an `AsyncClient` returns an awaitable.
    """

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
    """Base of the clients, with every endpoint that takes a single request."""

    search = Endpoint(calls.search)
    search_image = Endpoint(calls.search_image)
    embed_image = Endpoint(calls.embed_image)
    put_image = Endpoint(calls.put_image)
    get_image = Endpoint(calls.get_image)
    list_images = Endpoint(collection_calls.list_images)
    list_captions = Endpoint(collection_calls.list_captions)
    delete_image = Endpoint(collection_calls.delete_image)
    delete_captions = Endpoint(collection_calls.delete_captions)
    collections = Endpoint(collection_calls.collections)
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
        """Create a client. No request is sent.

        Args:
            url: Address of the server, such as `http://127.0.0.1:8000`.
            token: Bearer token. None reads it from `MLA_API_TOKEN`; "" sends no token.
            allow_insecure: Allow sending the token over plain http to another machine.
            connect_s: Time limit of a connection attempt in seconds.
            read_s: Maximum time without data from the server in seconds. An ingest may take ten
                times as long.
            retry: Retry policy.

        Raises:
            ValueError: The address or the token is invalid, or the token would be sent over plain
                http to another machine.

        """
        base, loopback = _base_url(url)
        token = (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip()
        if not all("!" <= letter <= "~" for letter in token):
            raise ValueError(
                f"the token (token= or {TOKEN_VARIABLE}) has characters that are not allowed in an "
                "HTTP header"
            )
        if token and base.scheme == "http" and not (loopback or allow_insecure):
            raise ValueError(
                f"{base}: the token would be sent unencrypted over plain http; use https (or, on "
                "a trusted network, Client(…, allow_insecure=True))"
            )
        self.url = str(base)
        headers = {"User-Agent": f"mla-ray/{version('mla-ray')}"}
        self._connect_s, self._read_s = connect_s, read_s
        self._retry = retry
        # On loopback, proxy settings of the environment are ignored, so no proxy gets the token.
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
        """Return the seconds to wait before the next attempt; raise if no attempt is left."""
        if response.status_code not in RETRIED_STATUSES or attempt >= self._retry.attempts:
            raise api_error(response)
        asked_s = retry_after_s(response.headers.get("Retry-After", ""))
        wait_s = self._retry.wait_s(attempt, asked_s)
        log.info("%s %s: %d; again in %.1f s", call.method, call.path, response.status_code, wait_s)
        return wait_s

    def _wait_after_error(self, call: Call[T], error: httpx2.RequestError, attempt: int) -> float:
        """Return the same as `_wait_after_response`, for a request without a response."""
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
    """Synchronous client. Threads may share it. Close it, or use it as a context manager."""

    def _open(self, headers: dict[str, str], trust_env: bool) -> None:
        self._http = httpx2.Client(base_url=self.url, headers=headers, trust_env=trust_env)

    def run(self, call: Call[T]) -> T:
        """Send a call, retry it if necessary, and return its result.

        Raises:
            ApiError: The server answered with an error, after the last attempt.
            Unreachable: The connection failed, after the last attempt.
            TimeoutError: No answer came in time. This is not retried.

        """
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
        """Encode any number of texts to unit vectors `[N, E]` float32.

        Args:
            texts: Texts, or a single string or `TextInput`, for which N is 1.
            language: BCP-47 code of the plain strings. A `TextInput` has its own language.

        Returns:
            The vectors, and the share of unknown tokens of each text `[N]`.

        Raises:
            ValueError: A text is invalid. It is raised before any request is sent.

        """
        return calls.stack([self.run(call) for call in calls.embed_texts(texts, language)])

    def embed_texts(self, texts: Texts, language: str = "en") -> Vectors:
        """Encode texts as `embed` does and return only the vectors `[N, E]` float32."""
        return self.embed(texts, language).vectors

    def ingest(self, records: Iterable[Record], *, chunk: int = CHUNK) -> IngestResult:
        """Encode captions and write them to the collection `captions`, one chunk per request.

        Only one chunk is in memory. If the method raises, the chunks before stay written. Ingesting
        the same records again is safe.

        Args:
            records: Captions, as `CaptionRecord` or as mappings with the same fields.
            chunk: Maximum number of records per request.

        Returns:
            The number of records received, written and rejected. Its `errors` list the first
            rejected records by their position in `records`, counted from 1.

        """
        stream = IngestStream(chunk)
        for call in stream.calls(records):
            stream.add(self.run(call))
        return stream.result

    def close(self) -> None:
        """Close all connections."""
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
    """Asynchronous client. Tasks of one event loop may share it.

    Close it with `aclose`, or use it as an asynchronous context manager.
    """

    def _open(self, headers: dict[str, str], trust_env: bool) -> None:
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers, trust_env=trust_env)

    async def run(self, call: Call[T]) -> T:
        """Send a call as `Client.run` does."""
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
        """Encode texts as `Client.embed` does."""
        return calls.stack([await self.run(call) for call in calls.embed_texts(texts, language)])

    async def embed_texts(self, texts: Texts, language: str = "en") -> Vectors:
        """Encode texts and return only the vectors `[N, E]` float32."""
        return (await self.embed(texts, language)).vectors

    async def ingest(
        self, records: Iterable[Record] | AsyncIterable[Record], *, chunk: int = CHUNK
    ) -> IngestResult:
        """Write captions as `Client.ingest` does. `records` may be an asynchronous iterable."""
        stream = IngestStream(chunk)
        async for call in stream.calls_async(records):
            stream.add(await self.run(call))
        return stream.result

    async def aclose(self) -> None:
        """Close all connections."""
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
    """Parse the address of a server. Return it, and True if it is on this machine."""
    try:
        base = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"not a server's address: {error}") from error
    if base.userinfo:
        raise ValueError(
            f"the server's address has a user name or password; a token goes into {TOKEN_VARIABLE}"
        )
    if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
        shown = url.partition("?")[0]  # a query may hold a secret
        raise ValueError(f"{shown!r} is not a server's address; one is http://127.0.0.1:8000")
    try:
        loopback = ipaddress.ip_address(base.host).is_loopback
    except ValueError:
        loopback = base.host == "localhost"
    return base, loopback
