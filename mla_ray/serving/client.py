"""A server's HTTP API from Python: `Client`, and `AsyncClient` with the same methods awaited.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search("Regenschirm", language="de").hits:
            print(f"{hit.score:.3f}  {hit.image_id}")

A method of `Api` says what a request is, as a `Call`; the two clients differ only in how they send
one.

Shapes: N texts, E joint embedding size.
"""

import asyncio
import base64
import functools
import heapq
import ipaddress
import itertools
import logging
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from importlib.metadata import version
from types import TracebackType
from typing import (
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ValidationError

from mla_ray.serving.schemas import (
    MAX_ERRORS,
    MAX_TEXTS,
    CaptionRecord,
    Collection,
    Embeddings,
    Health,
    ImageWritten,
    IngestResult,
    Languages,
    Problem,
    RejectedLine,
    SearchResult,
    TextEmbeddingRequest,
    TextInput,
)

TOKEN = "MLA_API_TOKEN"  # noqa: S105  the name of the variable, not a token
NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"
CHUNK = 5_000  # records of one ingest request
MAX_CHUNK = 64 << 20  # bytes of one
MAX_LINE = 64 << 10  # bytes of one record in it
INGEST_PATIENCE = 10  # read timeouts: a chunk is thousands of texts to embed
SHOWN = 500  # characters of a server's text in a message
RETRIED = (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError)
BUSY = (429, 503)
SIGNATURES = {  # of the formats that a server takes
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}

Vectors = npt.NDArray[np.float32]
Record = CaptionRecord | Mapping[str, Any]
P = ParamSpec("P")
T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
log = logging.getLogger(__name__)


class Embedded(NamedTuple):
    """What a server makes of texts."""

    vectors: Vectors  # [N, E], unit length
    unknown_tokens: npt.NDArray[np.float64] | None
    """[N]: of each text's tokens the share that its language does not know. At 1 the vector is that
    of a text without words, whatever the text. None if the server is of before it told."""


class ApiError(RuntimeError):
    """The server answered, but not with what was asked for. `problem` is its account, if any."""

    def __init__(self, status: int, problem: Problem | None, answer: str = "") -> None:
        super().__init__(status, problem, answer)  # all of them, so that it can be pickled
        self.status = status
        self.problem = problem
        self.answer = answer  # where it is no problem: its beginning

    def __str__(self) -> str:
        said = f"{self.problem.title}: {self.problem.detail}" if self.problem else self.answer
        return f"{self.status} {_printable(said).rstrip(': ')}".rstrip()


class Unauthorized(ApiError):
    """401: the token is missing or wrong."""

    def __str__(self) -> str:
        return f"{super().__str__()} (the client takes it from {TOKEN}, or as token=)"


class NotFound(ApiError):
    """404: no such language or image."""


class Invalid(ApiError):
    """422: the request is malformed, or the image cannot be read."""


class Busy(ApiError):
    """429 or 503, on the last attempt too."""


class Unreachable(ConnectionError):
    """No connection, or one that broke, on the last attempt too."""


ERRORS = {401: Unauthorized, 404: NotFound, 422: Invalid, 429: Busy, 503: Busy}


@dataclass(frozen=True)
class Retry:
    """What to do about 429, 503 and connections that fail. No timeout of an answer is retried.

    Every request may be sent again as it was: none changes anything the second time.
    """

    attempts: int = 5  # all told
    first_s: float = 0.5  # doubles with every attempt
    longest_s: float = 30.0  # also of a server's Retry-After

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, must be at least 1")

    def wait_s(self, attempt: int, asked_s: float = 0.0) -> float:
        """Seconds before the next one: half of it chance, so that clients do not come as one."""
        backoff = self.first_s * 2.0 ** (attempt - 1)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  no secret
        return min(max(asked_s, 0.0) + backoff * jitter, self.longest_s)


DEFAULT_RETRY = Retry()


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str  # percent-encoded
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str | None = None
    also: int | None = None  # a status, beside success, of an answer that `read` takes
    patience: int = 1  # read timeouts it may take

    def answered_by(self, response: httpx.Response) -> bool:
        # A server at its limit, or a proxy, may use that status as well.
        is_json = _media_type(response) == "application/json"
        return response.is_success or (response.status_code == self.also and is_json)

    def answer(self, response: httpx.Response) -> T:
        try:
            return self.read(response)
        except ValueError as error:
            said = f"not an answer of an mla-ray server to {self.method} {self.path}"
            raise ApiError(response.status_code, None, said) from error


class Endpoint(Generic[P, T]):
    """A method that says what to call, made one that calls it: at once, or awaited."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: object) -> Callable[Concatenate[Any, P], Call[T]]: ...
    @overload
    def __get__(self, client: "Client", owner: object) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: object) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: object) -> Any:
        if client is None:
            return self._build  # for help() and signatures

        def call(*args: P.args, **kwargs: P.kwargs) -> T | Awaitable[T]:
            return client.run(self._build(client, *args, **kwargs))

        return call


class Api(ABC):
    """Every endpoint of a server that is one request."""

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
        token = (os.environ.get(TOKEN, "") if token is None else token).strip()
        if not all("!" <= letter <= "~" for letter in token):
            raise ValueError(f"the token (token= or {TOKEN}) has characters that no header may")
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

    @Endpoint
    def search(
        self,
        query: str,
        *,
        language: str = "auto",
        find: Collection = "images",
        k: int = 10,
        offset: int = 0,
        in_language: str | None = None,
        source: str | None = None,
        min_score: float | None = None,
    ) -> Call[SearchResult]:
        """Images, or captions of any language, nearest to a text: `k` hits, best first.

        `language` is the query's, BCP-47, or `auto` to have it detected. `in_language` and
        `source` restrict what is found, `min_score` to hits of that cosine or a higher one; it is
        no probability, and differs between languages and natives. `offset` is where the page
        begins: the `next_offset` of the one before, None where that was the last to be had.
        """
        params = _page(find, k, offset, in_language, source, min_score)
        return _get("/v1/search", SearchResult, {"q": query, "language": language} | params)

    @Endpoint
    def search_image(
        self,
        image: bytes,
        *,
        find: Collection = "captions",
        k: int = 10,
        offset: int = 0,
        in_language: str | None = None,
        source: str | None = None,
        min_score: float | None = None,
    ) -> Call[SearchResult]:
        """Captions of any language, or images, nearest to a picture (PNG, JPEG, WebP, GIF, BMP)."""
        params = _page(find, k, offset, in_language, source, min_score)
        return _send_image("POST", "/v1/search/image", image, _model(SearchResult), params)

    @Endpoint
    def embed_image(self, image: bytes) -> Call[Vectors]:
        """The unit vector [E] of a picture."""
        path, params = "/v1/embeddings/image", {"encoding": "base64"}
        return _send_image("POST", path, image, lambda answer: _rows(answer).vectors[0], params)

    @Endpoint
    def put_image(self, image_id: str, image: bytes, *, source: str = "http") -> Call[ImageWritten]:
        """Embed a picture and write it to the collection `images`; one of that source and id is
        replaced.
        """
        params = {"source": source}
        return _send_image("PUT", _image_path(image_id), image, _model(ImageWritten), params)

    @Endpoint
    def get_image(self, image_id: str, *, source: str | None = None) -> Call[bytes]:
        """The small copy (WebP) of a picture that was put; `NotFound` if none is kept.

        Without `source` it is `Invalid` where several have an image of that id.
        """
        params = {} if source is None else {"source": source}
        return Call("GET", _image_path(image_id), lambda answer: answer.content, params)

    @Endpoint
    def languages(self) -> Call[Languages]:
        """The languages served, and the native (its name and fingerprint) they belong to."""
        return _get("/v1/languages", Languages)

    @Endpoint
    def health(self) -> Call[Health]:
        """Whether every part of the server works; no error where one does not."""
        return Call("GET", "/healthz", _model(Health), also=503)

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        content_type = {"Content-Type": call.content_type} if call.content_type else {}
        read_s = self._read_s * call.patience
        timeout = httpx.Timeout(connect=self._connect_s, read=read_s, write=self._read_s, pool=None)
        return http.build_request(
            call.method,
            call.path,
            params=dict(call.params),
            content=call.body,
            headers=content_type,
            timeout=timeout,
        )

    def _wait_s(self, call: Call[Any], came: httpx.Response | httpx.RequestError, n: int) -> float:
        """Seconds before attempt n + 1; raises if there is to be none."""
        last = n >= self._retry.attempts
        if isinstance(came, httpx.Response):
            if came.status_code not in BUSY or last:
                raise _api_error(came)
            wait = self._retry.wait_s(n, _asked_s(came.headers.get("Retry-After", "")))
            why = str(came.status_code)
        else:
            if not isinstance(came, RETRIED) or last:
                self._give_up(call, came)
            wait, why = self._retry.wait_s(n), type(came).__name__
        log.info("%s %s: %s; again in %.1f s", call.method, call.path, why, wait)
        return wait

    def _give_up(self, call: Call[Any], error: httpx.RequestError) -> NoReturn:
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, RETRIED):
            seconds = self._read_s * call.patience
            less = "; send less at a time, or" if call.patience > 1 else ";"
            raise TimeoutError(
                f"{self.url}: no answer to {call.method} {call.path} within {seconds:g} s"
                f"{less} raise read_s"
            ) from error
        what = _printable(str(error)) or type(error).__name__
        raise Unreachable(f"{self.url}: {what}; is a server running there?") from error


class Client(Api):
    """A server's API. Threads may share one. Close it, or use it as a context."""

    def _open(self, headers: dict[str, str], trust_env: bool) -> None:
        self._http = httpx.Client(base_url=self.url, headers=headers, trust_env=trust_env)

    def run(self, call: Call[T]) -> T:
        """Send a call, again as often as it may be, and read its answer."""
        attempt = 1
        while True:
            came: httpx.Response | httpx.RequestError
            try:
                came = self._http.send(self._request(self._http, call))
            except httpx.RequestError as error:
                came = error
            else:
                if call.answered_by(came):
                    return call.answer(came)
            time.sleep(self._wait_s(call, came, attempt))
            attempt += 1

    def embed(self, texts: Sequence[str | TextInput], language: str = "en") -> Embedded:
        """Unit vectors [N, E] of any number of texts, and how much of each text is unknown [N].

        `language` is that of the plain strings; a `TextInput` says its own.
        """
        return _stack([self.run(call) for call in _text_calls(texts, language)])

    def embed_texts(self, texts: Sequence[str | TextInput], language: str = "en") -> Vectors:
        """The vectors of `embed` alone: [N, E]."""
        return self.embed(texts, language).vectors

    def ingest(self, records: Iterable[Record], *, chunk: int = CHUNK) -> IngestResult:
        """Embed captions and write them to the collection `captions`, `chunk` at a time.

        No more than a chunk is held in memory. Rejected records are counted, and the first named
        by their place in `records`, from 1. After an exception, what was sent before stays
        written: ingest the same again, what is there already does not change.
        """
        ingest = _Ingest(chunk)
        for call in ingest.calls(records):
            ingest.add(self.run(call))
        return ingest.result

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
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=trust_env)

    async def run(self, call: Call[T]) -> T:
        """As `Client.run`."""
        attempt = 1
        while True:
            came: httpx.Response | httpx.RequestError
            try:
                came = await self._http.send(self._request(self._http, call))
            except httpx.RequestError as error:
                came = error
            else:
                if call.answered_by(came):
                    return call.answer(came)
            await asyncio.sleep(self._wait_s(call, came, attempt))
            attempt += 1

    async def embed(self, texts: Sequence[str | TextInput], language: str = "en") -> Embedded:
        """As `Client.embed`."""
        return _stack([await self.run(call) for call in _text_calls(texts, language)])

    async def embed_texts(self, texts: Sequence[str | TextInput], language: str = "en") -> Vectors:
        """As `Client.embed_texts`: [N, E]."""
        return (await self.embed(texts, language)).vectors

    async def ingest(
        self, records: Iterable[Record] | AsyncIterable[Record], *, chunk: int = CHUNK
    ) -> IngestResult:
        """As `Client.ingest`, of an async iterable too."""
        ingest = _Ingest(chunk)
        async for call in ingest.calls_async(records):
            ingest.add(await self.run(call))
        return ingest.result

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


class _Ingest:
    """A stream of records as calls, and their results as one."""

    def __init__(self, chunk: int) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, must be at least 1")
        self.result = IngestResult(received=0, written=0, rejected=0, errors=[])
        self._chunk = chunk
        self._before = 0  # records of the chunks before
        self._lines: list[bytes] = []  # of this chunk, each with its newline
        self._bytes = 0
        self._refused: list[RejectedLine] = []  # of this chunk, the first MAX_ERRORS

    def calls(self, records: Iterable[Record]) -> Iterator[Call[IngestResult]]:
        """Each result must be added before the next call is taken."""
        for record in records:
            yield from self._take(record)
        yield from self._rest()

    async def calls_async(
        self, records: Iterable[Record] | AsyncIterable[Record]
    ) -> AsyncIterator[Call[IngestResult]]:
        if isinstance(records, AsyncIterable):
            async for record in records:
                for call in self._take(record):
                    yield call
            for call in self._rest():
                yield call
        else:
            for call in self.calls(records):
                yield call

    def add(self, result: IngestResult) -> None:
        """Count in the result of the chunk under way, and begin the next."""
        total = self.result
        total.received += result.received
        total.written += result.written
        total.rejected += result.rejected
        room = MAX_ERRORS - len(total.errors)
        there = [RejectedLine(line=self._before + e.line, error=e.error) for e in result.errors]
        errors = heapq.merge(there, self._refused, key=lambda found: found.line)
        total.errors.extend(itertools.islice(errors, room))
        self._before += len(self._lines)
        self._lines, self._bytes, self._refused = [], 0, []

    def _take(self, record: Record) -> Iterator[Call[IngestResult]]:
        try:
            line = _line(record)
        except ValueError as error:
            yield from self._keep(b"\n")
            self.result.received += 1
            self.result.rejected += 1
            if len(self._refused) < MAX_ERRORS:
                line_number = self._before + len(self._lines)
                self._refused.append(RejectedLine(line=line_number, error=str(error)))
        else:
            yield from self._keep(line)

    def _keep(self, line: bytes) -> Iterator[Call[IngestResult]]:
        """An empty line stands for one refused here: a server passes over it, but counts it."""
        if len(self._lines) == self._chunk or self._bytes + len(line) > MAX_CHUNK:
            yield from self._rest()
        self._lines.append(line)
        self._bytes += len(line)

    def _rest(self) -> Iterator[Call[IngestResult]]:
        if self._lines:
            yield Call(
                "POST",
                "/v1/captions",
                _model(IngestResult),
                body=b"".join(self._lines),
                content_type=NDJSON,
                patience=INGEST_PATIENCE,
            )


class _Rows(NamedTuple):
    fingerprint: str
    vectors: Vectors  # [N, E]
    unknown_tokens: list[float] | None  # [N]


def _line(record: Record) -> bytes:
    """A record as NDJSON. ValueError if it cannot be sent."""
    plain = record.model_dump(exclude_none=True) if isinstance(record, BaseModel) else record
    try:
        line = orjson.dumps(dict(plain))
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a record that JSON can hold: {error}") from error
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE:,} bytes")
    return line + b"\n"


def _text_calls(texts: Sequence[str | TextInput], language: str) -> list[Call[_Rows]]:
    """Requests for all texts; ValueError names one that is none before anything is sent."""
    if isinstance(texts, str) or not texts:
        raise ValueError("texts: a list of one text or more")
    inputs = []
    for number, text in enumerate(texts):
        try:
            inputs.append(
                text if isinstance(text, TextInput) else TextInput(text=text, language=language)
            )
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"])
            raise ValueError(f"texts[{number}]: {where}: {found['msg']}") from error
    calls = []
    for start in range(0, len(inputs), MAX_TEXTS):
        request = TextEmbeddingRequest(inputs=inputs[start : start + MAX_TEXTS], encoding="base64")
        calls.append(
            Call(
                "POST",
                "/v1/embeddings/text",
                functools.partial(_rows, count=len(request.inputs)),
                body=request.model_dump_json().encode(),
                content_type="application/json",
            )
        )
    return calls


def _stack(parts: list[_Rows]) -> Embedded:
    if len({part.fingerprint for part in parts}) > 1:
        raise RuntimeError("the server changed its native in the middle; embed the texts again")
    told = [part.unknown_tokens for part in parts if part.unknown_tokens is not None]
    return Embedded(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate(told) if len(told) == len(parts) else None,
    )


def _rows(response: httpx.Response, count: int = 1) -> _Rows:
    answer = Embeddings.model_validate_json(response.content)
    rows = answer.embeddings
    if isinstance(rows, str):
        flat = np.frombuffer(base64.b64decode(rows, validate=True), "<f4")
    else:
        flat = np.asarray(rows, np.float32).ravel()
    vectors = flat.reshape(count, answer.dim).astype(np.float32)
    return _Rows(answer.fingerprint, vectors, answer.unknown_tokens)


def _get(
    path: str, model: type[Model], params: Mapping[str, str | int | float] | None = None
) -> Call[Model]:
    return Call("GET", path, _model(model), params or {})


def _send_image(
    method: str,
    path: str,
    image: bytes,
    read: Callable[[httpx.Response], T],
    params: Mapping[str, str | int | float],
) -> Call[T]:
    return Call(method, path, read, params, image, _image_type(image))


def _model(model: type[Model]) -> Callable[[httpx.Response], Model]:
    return lambda response: model.model_validate_json(response.content)


def _page(
    find: str,
    k: int,
    offset: int,
    in_language: str | None,
    source: str | None,
    min_score: float | None,
) -> dict[str, str | int | float]:
    wanted = {"in_language": in_language, "source": source, "min_score": min_score}
    given = {name: value for name, value in wanted.items() if value is not None}
    return {"find": find, "k": k, "offset": offset, **given}


def _image_path(image_id: str) -> str:
    if not image_id:
        raise ValueError("image_id is empty")
    name = quote(image_id, safe="")
    # These two would be taken for steps in the path.
    return f"/v1/images/{name.replace('.', '%2E') if name in ('.', '..') else name}"


def _image_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in SIGNATURES.items():
        if data.startswith(signature):
            return media_type
    raise ValueError("not a picture in PNG, JPEG, WebP, GIF or BMP")


def _base_url(url: str) -> tuple[httpx.URL, bool]:
    """The server's address, and whether it is on this machine."""
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"not a server's address: {error}") from error
    if base.userinfo:
        raise ValueError(f"a name or password in a server's address; a token goes into {TOKEN}")
    if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
        shown = url.partition("?")[0]  # a query may hold a secret
        raise ValueError(f"{shown!r} is not a server's address; one is http://127.0.0.1:8000")
    try:
        loopback = ipaddress.ip_address(base.host).is_loopback
    except ValueError:
        loopback = base.host == "localhost"
    return base, loopback


def _media_type(response: httpx.Response) -> str:
    given: str = response.headers.get("Content-Type", "")
    return given.partition(";")[0].strip().lower()


def _asked_s(retry_after: str) -> float:
    """Seconds, or a date; 0 if neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    try:
        return mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _api_error(response: httpx.Response) -> ApiError:
    kind = ERRORS.get(response.status_code, ApiError)
    content = response.content
    _, _, token = response.request.headers.get("Authorization", "").partition(" ")
    if token:  # a server that answers with what it was sent does not get it shown
        content = content.replace(token.encode(), b"***")
    if _media_type(response) == PROBLEM:
        try:
            return kind(response.status_code, Problem.model_validate_json(content))
        except ValidationError:  # another's, as of a proxy: all of its fields are optional
            pass
    said = content[: 4 * SHOWN].decode(errors="replace")
    if response.has_redirect_location:  # not followed: a token is for the server it was given for
        said = f"it sends on to {response.headers['Location']}; give that address if it is right"
    return kind(response.status_code, None, f"{response.reason_phrase}: {said}")


def _printable(text: str) -> str:
    """One line of it, without what a terminal would obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
