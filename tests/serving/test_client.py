"""The client against a server that follows the contract, and fails when told to, over real HTTP."""

import asyncio
import base64
import json
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from mla_ray.serving.client import AsyncClient, Client
from mla_ray.serving.client_errors import (
    ApiError,
    Busy,
    Invalid,
    NotFound,
    Unauthorized,
    Unreachable,
)
from mla_ray.serving.client_retries import Retry
from mla_ray.serving.schemas import (
    MAX_ERRORS,
    MAX_TEXTS,
    CaptionRecord,
    Embeddings,
    Health,
    Hit,
    ImageWritten,
    IngestResult,
    LanguageInfo,
    Languages,
    Problem,
    RejectedLine,
    SearchResult,
    TextEmbeddingRequest,
    TextInput,
)
from tests.support.commands import Mla

DIM = 4
TOKEN = "s3cret-token"  # noqa: S105
QUICK = Retry(attempts=4, first_s=0.01, longest_s=0.05)
HTML = "<html>\x1b[31m502 " + "x" * 5000


def vector(text: str) -> np.ndarray:
    row = np.random.default_rng(list(text.encode())).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


@dataclass(frozen=True)
class Seen:
    method: str
    path: str  # as it was sent
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Fault:
    """What the server does in place of its work: answer so, break off, or say nothing."""

    status: int = 503
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    breaks_off: bool = False
    silent_s: float = 0.0
    after_work: bool = False  # the request is done, only its answer is lost


def problem(status: int, detail: str, **headers: str) -> Fault:
    said = Problem(type="urn:mla-ray:problem:x", title="Title", status=status, detail=detail)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    content_type = {"content-type": "application/problem+json"}
    return Fault(status, said.model_dump_json(exclude_none=True), content_type | given)


BROKEN = Fault(breaks_off=True)


class Server:
    """What was asked of it, what it keeps, and the faults that come first."""

    def __init__(self) -> None:
        self.url = ""
        self.app = contract(self)
        self.reset()

    def reset(self) -> None:
        self.seen: list[Seen] = []
        self.faults: deque[Fault] = deque()
        self.captions: dict[str, CaptionRecord] = {}
        self.images: dict[str, tuple[str, bytes]] = {}
        self.token = ""
        self.well = True
        self.tells = True  # of unknown tokens: one of before does not
        self.on_request: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        raw, query = scope["raw_path"].decode(), scope["query_string"].decode()
        self.seen.append(Seen(scope["method"], raw, query, headers, body))
        self.on_request()
        if self.faults:
            fault = self.faults.popleft()
            if fault.after_work:
                await self.work(scope, body, nowhere)
            await self.fail(fault, send)
        elif self.token and headers.get("authorization") != f"Bearer {self.token}":
            await self.fail(problem(401, "send the bearer token"), send)
        else:
            await self.work(scope, body, send)

    async def work(self, scope: Scope, body: bytes, send: Send) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive, send)

    async def fail(self, fault: Fault, send: Send) -> None:
        await asyncio.sleep(fault.silent_s)
        headers = [(name.encode(), value.encode()) for name, value in fault.headers.items()]
        if fault.breaks_off:  # the answer ends before its length: the connection is closed
            headers.append((b"content-length", b"100"))
        start = {"type": "http.response.start", "status": fault.status, "headers": headers}
        await send(start)
        await send(
            {
                "type": "http.response.body",
                "body": fault.body.encode(),
                "more_body": fault.breaks_off,
            }
        )


def text_unknown(text: str) -> float:
    return text.count("犬") / len(text)


async def nowhere(message: Message) -> None:
    pass


def contract(server: Server) -> FastAPI:
    """The server's role in the protocol, without models or an index."""
    app = FastAPI()

    def embeddings(
        rows: list[np.ndarray], encoding: str, unknown: list[float] | None = None
    ) -> Embeddings:
        stacked = np.stack(rows).astype("<f4")
        packed = base64.b64encode(stacked.tobytes()).decode()
        return Embeddings(
            native="tiny",
            fingerprint="ab" * 8,
            dim=DIM,
            embeddings=packed if encoding == "base64" else stacked.tolist(),
            unknown_tokens=unknown,
        )

    def page(
        language: str | None, detected: bool, find: str, k: int, offset: int, unknown: float = 0
    ) -> SearchResult:
        hits = [
            Hit(
                id=f"{find} {n}",
                image_id=f"photo {n}",
                score=1 - n / 100,
                language="de" if find == "captions" else "",
                caption="ein Hund" if find == "captions" else "",
                source="test",
                image_url=None,
            )
            for n in range(offset, offset + k)
        ]
        following = offset + k
        return SearchResult(
            language=language,
            detected=detected,
            unknown_tokens=unknown if server.tells else None,
            hits=hits,
            offset=offset,
            next_offset=following,
        )

    def check_image(request: Request, body: bytes) -> None:
        media_type = request.headers["content-type"]
        if Image.open(BytesIO(body)).get_format_mimetype() != media_type:
            raise HTTPException(415, media_type)

    @app.post("/v1/embeddings/text")
    async def embed_text(request: TextEmbeddingRequest) -> Embeddings:
        rows = [vector(f"{given.language} {given.text}") for given in request.inputs]
        unknown = [text_unknown(given.text) for given in request.inputs] if server.tells else None
        return embeddings(rows, request.encoding, unknown)

    @app.post("/v1/embeddings/image")
    async def embed_image(request: Request, encoding: str = "float") -> Embeddings:
        check_image(request, await request.body())
        return embeddings([vector("image")], encoding)

    @app.get("/v1/search")
    async def search(
        q: str, language: str = "auto", find: str = "images", k: int = 10, offset: int = 0
    ) -> SearchResult:
        detected = language == "auto"
        tongue = "de" if detected else language
        return page(tongue, detected, find, k, offset, text_unknown(q))

    @app.post("/v1/search/image")
    async def search_image(
        request: Request, find: str = "captions", k: int = 10, offset: int = 0
    ) -> SearchResult:
        check_image(request, await request.body())
        return page(None, False, find, k, offset)

    @app.post("/v1/captions")
    async def ingest(request: Request) -> IngestResult:
        assert request.headers["content-type"] == "application/x-ndjson"
        result = IngestResult(received=0, written=0, rejected=0, errors=[])
        lines = (await request.body()).split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            result.received += 1
            try:
                record = CaptionRecord.model_validate_json(line)
            except ValidationError as error:
                result.rejected += 1
                if len(result.errors) < MAX_ERRORS:
                    found = error.errors()[0]
                    said = f"{found['loc'][0]}: {found['msg']}"
                    result.errors.append(RejectedLine(line=number, error=said))
            else:
                server.captions[f"{record.image_id}#{record.caption}"] = record
                result.written += 1
        return result

    @app.put("/v1/images/{image_id:path}")
    async def put_image(request: Request, image_id: str, source: str = "http") -> ImageWritten:
        body = await request.body()
        check_image(request, body)
        server.images[image_id] = (source, body)
        return ImageWritten(image_id=image_id, image_url=None)

    @app.get("/v1/images/{image_id:path}")
    async def get_image(image_id: str) -> Response:
        if image_id not in server.images:
            told = problem(404, "no picture of that id is kept here")
            return Response(told.body, told.status, told.headers)
        return Response(server.images[image_id][1], media_type="image/webp")

    @app.get("/v1/languages")
    async def languages() -> Languages:
        german = LanguageInfo(
            language="de",
            name="German",
            autonym="Deutsch",
            native=False,
            captions=len(server.captions),
            version="1",
            rows=9,
            metrics={},
        )
        return Languages(native="tiny", fingerprint="ab" * 8, languages=[german], broken=[])

    @app.get("/healthz")
    async def healthz(response: Response) -> Health:
        response.status_code = 200 if server.well else 503
        state = "ok" if server.well else "unavailable"
        return Health(status=cast("Any", state), parts={"index": state})

    return app


def listen(server: Server, sock: socket.socket) -> uvicorn.Server:
    """Serve in a thread until `should_exit`."""
    running = uvicorn.Server(uvicorn.Config(server, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    return running


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


@dataclass(frozen=True)
class Ask:
    """One method of a client of either kind, from opening it to closing it."""

    kind: str
    url: str

    def __call__(
        self,
        method: str,
        *arguments: Any,
        url: str | None = None,
        token: str | None = None,
        connect_s: float = 5.0,
        read_s: float = 20.0,
        retry: Retry = QUICK,
        **named: Any,
    ) -> Any:
        url = url or self.url
        patience = {"connect_s": connect_s, "read_s": read_s}
        if self.kind == "sync":
            with Client(url, token=token, retry=retry, **patience) as client:
                return getattr(client, method)(*arguments, **named)

        async def ask() -> Any:
            async with AsyncClient(url, token=token, retry=retry, **patience) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(ask())


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    return Ask(request.param, server.url)


@pytest.fixture(scope="module")
def png() -> bytes:
    return picture("PNG")


def picture(kind: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, kind)
    return buffer.getvalue()


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": f"photo {n}", "language": "de", "caption": f"ein Hund, der {n}."}
        for n in range(count)
    ]


# What goes out and comes in


def test_texts_are_vectors_in_their_order_however_many(ask: Ask, server: Server) -> None:
    texts = [f"Hund {n}" for n in range(2 * MAX_TEXTS + 1)]
    vectors = ask("embed_texts", texts, language="de")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([vector(f"de {text}") for text in texts]))
    assert len(server.seen) == 3
    assert all(json.loads(seen.body)["encoding"] == "base64" for seen in server.seen)
    vectors[0] = 0  # the caller's own


def test_texts_of_several_languages_may_be_mixed(ask: Ask) -> None:
    vectors = ask("embed_texts", ["a dog", TextInput(text="ein Hund", language="de")])
    np.testing.assert_array_equal(vectors, np.stack([vector("en a dog"), vector("de ein Hund")]))


def test_how_much_of_each_text_is_unknown_is_told(ask: Ask, server: Server) -> None:
    texts = [("犬" * (n % 3)).ljust(4, "a") for n in range(MAX_TEXTS + 2)]
    found = ask("embed", texts, language="de")
    np.testing.assert_array_equal(found.vectors, ask("embed_texts", texts, language="de"))
    assert found.unknown_tokens.tolist() == [n % 3 / 4 for n in range(MAX_TEXTS + 2)]
    assert ask("search", "犬a").unknown_tokens == 0.5
    assert ask("search_image", picture("PNG")).unknown_tokens == 0
    server.tells = False  # a server of before
    found = ask("embed", ["犬"])
    assert found.vectors.shape == (1, DIM)
    assert found.unknown_tokens is None
    assert ask("search", "犬a").unknown_tokens is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([*"abc", " "], r"texts\[3\]: text: "),
        (["a" * 1001], r"texts\[0\]: text: "),
        ([], "one text or more"),
        ("a dog", "one text or more"),
    ],
)
def test_a_text_that_is_none_is_named_before_anything_is_sent(
    ask: Ask, server: Server, texts: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ask("embed_texts", texts)
    assert server.seen == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_goes_out_as_what_it_is(ask: Ask, server: Server, kind: str) -> None:
    row = ask("embed_image", picture(kind))
    np.testing.assert_array_equal(row, vector("image"))
    row[0] = 0  # the caller's own
    assert server.seen[0].headers["content-type"] == f"image/{kind.lower()}"


def test_what_is_no_picture_is_not_sent(ask: Ask, server: Server) -> None:
    for method, arguments in (("embed_image", ()), ("search_image", ()), ("put_image", ("id",))):
        with pytest.raises(ValueError, match="not a picture in PNG, JPEG"):
            ask(method, *arguments, b"<svg/>")
    assert server.seen == []


def test_a_search_says_what_was_asked_and_no_more(ask: Ask, server: Server) -> None:
    found = ask("search", "große Katze & Hund", k=2)
    assert isinstance(found, SearchResult)
    assert (found.language, found.detected, found.next_offset) == ("de", True, 2)
    assert [hit.id for hit in found.hits] == ["images 0", "images 1"]
    sent = "q=gro%C3%9Fe+Katze+%26+Hund&language=auto&find=images&k=2&offset=0"
    assert server.seen[0].query == sent
    more = {"find": "captions", "offset": 2, "in_language": "de", "source": "a b"}
    found = ask("search", "dog", language="en", **more)
    assert (found.language, found.detected, found.offset) == ("en", False, 2)
    sent = "q=dog&language=en&find=captions&k=10&offset=2&in_language=de&source=a+b"
    assert server.seen[1].query == sent
    ask("search", "dog", min_score=0)
    assert server.seen[2].query.endswith("&k=10&offset=0&min_score=0")


def test_a_search_by_picture_finds_captions_unless_told(
    ask: Ask, server: Server, png: bytes
) -> None:
    assert ask("search_image", png, k=1).hits[0].id == "captions 0"
    more = {"source": "x", "min_score": 0.25}
    assert ask("search_image", png, find="images", k=1, **more).hits[0].id == "images 0"
    assert server.seen[1].query == "find=images&k=1&offset=0&source=x&min_score=0.25"
    assert server.seen[1].body == png


@pytest.mark.parametrize(
    "image_id",
    ["1", "emoji/1f302", "/x", "a//b", "x/", "a/../b", "..", ".", "%2F", "é ?#&", "日本.png"],
)
def test_a_picture_is_kept_under_any_id(
    ask: Ask, server: Server, png: bytes, image_id: str
) -> None:
    written = ask("put_image", image_id, png, source="test")
    assert written == ImageWritten(image_id=image_id, image_url=None)
    assert server.images == {image_id: ("test", png)}
    assert ask("get_image", image_id) == png
    assert ask("get_image", image_id, source="a test") == png
    assert [seen.query for seen in server.seen] == ["source=test", "", "source=a+test"]


def test_an_empty_image_id_is_not_sent(ask: Ask) -> None:
    with pytest.raises(ValueError, match="image_id is empty"):
        ask("get_image", "")


def test_languages_are_listed(ask: Ask) -> None:
    listed = ask("languages")
    assert isinstance(listed, Languages)
    assert [info.autonym for info in listed.languages] == ["Deutsch"]


def test_a_server_that_is_unwell_says_so_at_once(ask: Ask, server: Server) -> None:
    assert ask("health").status == "ok"
    server.well = False
    assert ask("health") == Health(status="unavailable", parts={"index": "unavailable"})
    assert len(server.seen) == 2


def test_a_server_too_busy_for_its_health_is_asked_again(ask: Ask, server: Server) -> None:
    server.faults.append(problem(503, "too many requests are under way"))
    assert ask("health").status == "ok"
    assert len(server.seen) == 2


def test_a_path_before_the_api_is_kept(ask: Ask, server: Server) -> None:
    with pytest.raises(NotFound):
        ask("get_image", "x", url=f"{server.url}/clip/")
    assert server.seen[0].path == "/clip/v1/images/x"


def test_methods_of_both_clients_tell_what_they_take() -> None:
    for kind in (Client, AsyncClient):
        assert "in_language" in str(kind.search.__annotations__)
        assert "nearest to a text" in (kind.search.__doc__ or "")


# Ingest


def test_captions_go_in_chunks_and_come_back_as_one_result(ask: Ask, server: Server) -> None:
    rows: list[Any] = [*records(7)]
    rows[2] = {"image_id": "photo", "language": "de", "caption": " "}
    rows[3] = CaptionRecord(image_id="photo 3", language="de", caption="Wörter")
    rows[5] = {"image_id": "photo", "caption": "no language"}
    result = ask("ingest", iter(rows), chunk=3)
    assert (result.received, result.written, result.rejected) == (7, 5, 2)
    assert [(found.line, found.error.split(":")[0]) for found in result.errors] == [
        (3, "caption"),
        (6, "language"),
    ]
    assert [len(seen.body.splitlines()) for seen in server.seen] == [3, 3, 1]
    assert server.captions["photo 3#Wörter"] == rows[3]


def test_ingesting_again_changes_nothing(ask: Ask, server: Server) -> None:
    first = ask("ingest", records(5), chunk=2)
    kept = dict(server.captions)
    assert ask("ingest", records(5), chunk=2) == first
    assert server.captions == kept


def test_a_chunk_whose_answer_was_lost_is_counted_once(ask: Ask, server: Server) -> None:
    server.faults.extend([Fault(breaks_off=True, after_work=True), problem(429, "slow down")])
    result = ask("ingest", records(5), chunk=2)
    assert (result.received, result.written, result.rejected) == (5, 5, 0)
    assert len(server.captions) == 5
    assert [len(seen.body.splitlines()) for seen in server.seen] == [2, 2, 2, 2, 1]


def test_a_record_that_cannot_be_sent_is_rejected_in_its_place(ask: Ask, server: Server) -> None:
    rows: list[Any] = [*records(6)]
    rows[0]["caption"] = "\ud800"  # half of a surrogate pair
    rows[1]["language"] = "no language"
    rows[2]["caption"] = "x" * (64 << 10)
    rows[4]["image_id"] = object()
    rows[5] = "not a record"
    result = ask("ingest", rows, chunk=2)
    assert (result.received, result.written, result.rejected) == (6, 1, 5)
    assert [found.line for found in result.errors] == [1, 2, 3, 5, 6]
    assert result.errors[2].error == "longer than 65,536 bytes"
    assert all("x" * 1000 not in seen.body.decode() for seen in server.seen)


def test_the_first_thousand_rejections_are_named_and_all_counted(ask: Ask) -> None:
    rows: list[Any] = [{"caption": "alone"}, {"caption": object()}] * (MAX_ERRORS // 2 + 10)
    result = ask("ingest", rows, chunk=700)
    assert result.rejected == result.received == MAX_ERRORS + 20
    assert [found.line for found in result.errors] == list(range(1, MAX_ERRORS + 1))


def test_no_more_than_a_chunk_is_read_ahead(ask: Ask, server: Server) -> None:
    taken, ahead = 0, []
    server.on_request = lambda: ahead.append(taken)

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for record in records(10):
            taken += 1
            yield record

    ask("ingest", stream(), chunk=3)
    assert ahead == [4, 7, 10, 10]


def test_a_chunk_stays_within_the_bytes_of_a_request(
    ask: Ask, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_ray.serving.client.MAX_CHUNK", 200)
    result = ask("ingest", [*records(10), {"caption": "alone"}])
    assert (result.written, [found.line for found in result.errors]) == (10, [11])
    assert len(server.seen) > 1
    assert all(len(seen.body) <= 200 for seen in server.seen)


def test_an_async_stream_is_ingested(server: Server) -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        for record in records(5):
            await asyncio.sleep(0)
            yield record

    async def ingest() -> IngestResult:
        async with AsyncClient(server.url) as client:
            return await client.ingest(stream(), chunk=2)

    assert asyncio.run(ingest()).written == 5
    assert len(server.seen) == 3


def test_nothing_to_ingest_is_nothing_sent(ask: Ask, server: Server) -> None:
    assert ask("ingest", []) == IngestResult(received=0, written=0, rejected=0, errors=[])
    assert server.seen == []
    with pytest.raises(ValueError, match="chunk is 0"):
        ask("ingest", [], chunk=0)


# Faults


CALLS = [
    ("search", ("dog",)),
    ("search_image", (picture("PNG"),)),
    ("embed_texts", (["dog"],)),
    ("embed_image", (picture("PNG"),)),
    ("put_image", ("id", picture("PNG"))),
    ("languages", ()),
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


def test_retry_after_is_waited_for(ask: Ask, server: Server) -> None:
    server.faults.append(problem(503, "busy", Retry_After="1"))
    began = time.perf_counter()
    ask("languages", retry=Retry(first_s=0.01))
    assert 1.0 <= time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "value",
    ["99999999", "9" * 400, formatdate(time.time() + 9e6, usegmt=True)],
    ids=["seconds", "digits", "date"],
)
def test_no_server_makes_the_client_wait_for_long(ask: Ask, server: Server, value: str) -> None:
    server.faults.append(problem(429, "slow down", Retry_After=value))
    began = time.perf_counter()
    ask("languages")
    assert QUICK.longest_s <= time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "value", ["", "-1", "soon", "1e3", "٣", formatdate(0, usegmt=True), "0 Foo 99999"]
)
def test_a_retry_after_that_says_nothing_is_passed_over(
    ask: Ask, server: Server, value: str
) -> None:
    server.faults.append(problem(503, "busy", Retry_After=value))
    ask("languages", retry=Retry(first_s=0.01))
    assert len(server.seen) == 2


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


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (422, Invalid), (413, ApiError), (500, ApiError)]
)
def test_a_problem_is_raised_as_it_was_told_and_not_asked_again(
    ask: Ask, server: Server, status: int, kind: type[ApiError]
) -> None:
    server.faults.append(problem(status, "it cannot\nbe\x1b[2J done"))
    with pytest.raises(ApiError) as caught:
        ask("search", "dog")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert caught.value.problem is not None
    assert caught.value.problem.type == "urn:mla-ray:problem:x"
    assert str(caught.value) == f"{status} Title: it cannot be [2J done"
    assert len(server.seen) == 1


def test_an_answer_that_is_no_problem_is_shown_shortly_and_without_control_characters(
    ask: Ask, server: Server
) -> None:
    server.faults.append(Fault(502, HTML))
    with pytest.raises(ApiError) as caught:
        ask("languages")
    assert caught.value.problem is None
    assert str(caught.value).startswith("502 Bad Gateway: <html> [31m502 xxx")
    assert len(str(caught.value)) < 600
    server.faults.append(Fault(500, '{"title": 1}', {"content-type": "application/problem+json"}))
    with pytest.raises(ApiError, match=r'^500 Internal Server Error: \{"title": 1\}$'):
        ask("languages")
    server.faults.append(Fault(500))
    with pytest.raises(ApiError, match=r"^500 Internal Server Error$"):
        ask("languages")


@pytest.mark.parametrize("body", [HTML, "", "{}", "[]"])
def test_success_of_some_other_server_is_no_answer(ask: Ask, server: Server, body: str) -> None:
    server.faults.append(Fault(200, body, {"content-type": "application/json"}))
    with pytest.raises(ApiError, match="200 not an answer of an mla-ray server to GET /v1/search"):
        ask("search", "dog")


@pytest.mark.parametrize("rows", ["AAAA", "?", base64.b64encode(bytes(4 * DIM)).decode()])
def test_vectors_of_another_shape_are_refused(ask: Ask, server: Server, rows: str) -> None:
    body = {"native": "n", "fingerprint": "ab", "dim": DIM, "embeddings": rows}
    server.faults.append(Fault(200, json.dumps(body)))
    with pytest.raises(ApiError, match="not an answer"):
        ask("embed_texts", ["a", "b"])


def test_vectors_of_two_natives_are_not_stacked(ask: Ask, server: Server) -> None:
    row = base64.b64encode(bytes(4 * DIM * MAX_TEXTS)).decode()
    body = {"native": "n", "fingerprint": "cd", "dim": DIM, "embeddings": row}
    server.faults.append(Fault(200, json.dumps(body)))
    with pytest.raises(RuntimeError, match="changed its native"):
        ask("embed_texts", ["dog"] * (MAX_TEXTS + 1))


def test_errors_cross_processes() -> None:
    told = Problem(type="urn:x", title="Unauthorized", status=401, detail="send it")
    again = pickle.loads(pickle.dumps(Unauthorized(401, told)))  # noqa: S301
    assert (again.status, again.problem) == (401, told)
    assert str(again).startswith("401 Unauthorized: send it")


# The token


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
    with pytest.raises(ApiError, match=r"307 Temporary Redirect: it sends on to http://elsewhere"):
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


# The command line


@pytest.fixture
def mla(mla: Mla, monkeypatch: pytest.MonkeyPatch) -> Mla:
    """In a window wide enough for messages to stay on their line."""
    monkeypatch.setenv("COLUMNS", "200")
    return mla


def test_search_asks_a_server(mla: Mla, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = TOKEN
    monkeypatch.setenv("MLA_API_TOKEN", TOKEN)
    run = mla("search", "ein Hund", "--url", server.url, "--language", "auto", "-k", 2, "--json")
    assert run.code == 0, run.err
    row = {"image_id": "photo 0", "score": 1.0, "language": "", "caption": "", "source": "test"}
    row |= {"unknown_tokens": 0.0}
    assert json.loads(run.out) == [row, row | {"image_id": "photo 1", "score": 0.99}]
    assert server.seen[0].query == "q=ein+Hund&language=auto&find=images&k=2&offset=0"
    wanted = ("--find", "captions", "--in-language", "de", "--source", "test")
    wanted += ("--min-score", "0.5")
    run = mla("search", "a dog", "--url", server.url, *wanted)
    assert run.out.splitlines()[0] == "1.000  photo 0  ein Hund"
    sent = "q=a+dog&language=en&find=captions&k=10&offset=0&in_language=de&source=test"
    assert server.seen[1].query == f"{sent}&min_score=0.5"


def test_search_says_how_much_of_the_query_is_unknown(mla: Mla, server: Server) -> None:
    for query, share, said in (("犬犬aa", 0.5, "50% of the query"), ("犬", 1, "say nothing of it")):
        run = mla("search", query, "--url", server.url, "-k", 2, "--json")
        assert [row["unknown_tokens"] for row in json.loads(run.out)] == [share, share]
        assert said in run.err
        assert run.err.count("\n") == 1
    server.tells = False
    run = mla("search", "犬", "--url", server.url, "-k", 1, "--json")
    assert (json.loads(run.out)[0]["unknown_tokens"], run.err) == (None, "")


def test_search_by_picture_asks_a_server(
    mla: Mla, server: Server, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(png)
    run = mla("search", "--image", "red.png", "--url", server.url, "-k", 1, "--json")
    assert run.code == 0, run.err
    assert [row["caption"] for row in json.loads(run.out)] == ["ein Hund"]
    run = mla("search", "--image", "red.png", "--find", "images", "--url", server.url, "--json")
    assert {row["caption"] for row in json.loads(run.out)} == {""}
    assert server.seen[1].body == png


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog", "give either --index"),
        ("dog --index edge:x --url http://127.0.0.1:9", "give either --index"),
        ("--url http://127.0.0.1:9", "give either a text or --image"),
        ("dog --image x.png --url http://127.0.0.1:9", "give either a text or --image"),
        ("--index edge:x", "give a text"),
        ("--index edge:x --image x.png", "--image does not go with --index"),
        ("dog --index edge:x --in-language de", "--in-language does not go with --index"),
        ("dog --index edge:x --source s", "--source does not go with --index"),
        ("dog --index edge:x --language auto", "--language auto needs a server"),
        ("dog --url http://127.0.0.1:9 --pack p", "--pack does not go with --url"),
        ("dog --url http://127.0.0.1:9 --native n", "--native does not go with --url"),
        (
            "--image x.png --language de --url http://127.0.0.1:9",
            "--language does not go with --image",
        ),
    ],
)
def test_search_options_that_do_not_go_together_are_bad_usage(
    mla: Mla, line: str, message: str
) -> None:
    run = mla("search", *line.split())
    assert run.code == 2
    assert message in run.err


def test_what_a_server_refuses_is_one_line(mla: Mla, server: Server, tmp_path: Path) -> None:
    server.token = TOKEN
    run = mla("search", "dog", "--url", server.url)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("mla: 401 ")
    assert "MLA_API_TOKEN" in run.err
    assert run.err.count("\n") == 1
    (tmp_path / "note.txt").write_text("hello")
    run = mla("search", "--image", "note.txt", "--url", server.url)
    assert run.err == "mla: not a picture in PNG, JPEG, WebP, GIF or BMP\n"
    run = mla("search", "--image", "none.png", "--url", server.url)
    assert run.code == 1
    assert "none.png" in run.err


def test_the_client_needs_no_models() -> None:
    code = "import sys, mla_ray.serving.client; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "ray", "open_clip", "qdrant_client", "serve", "fastapi"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
