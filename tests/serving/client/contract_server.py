"""A server that follows the contract, and fails when told to, over real HTTP; and clients of it."""

import asyncio
import base64
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from mla_ray.serving.client import AsyncClient, Client
from mla_ray.serving.client_retries import Retry
from mla_ray.serving.collection_schemas import (
    CaptionPage,
    Collections,
    ImagePage,
    ListedImage,
    Removed,
)
from mla_ray.serving.schemas import (
    MAX_ERRORS,
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
)

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
        stacked = np.array(rows, "<f4").reshape(-1, DIM)
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

    @app.delete("/v1/images/{image_id:path}")
    async def delete_image(image_id: str) -> Removed:
        return Removed(images=int(server.images.pop(image_id, None) is not None))

    @app.get("/v1/images")
    async def list_images() -> ImagePage:
        images = [ListedImage(image_id=i, source=s) for i, (s, _) in server.images.items()]
        return ImagePage(images=images, next_cursor=None)

    @app.get("/v1/captions")
    async def list_captions() -> CaptionPage:
        return CaptionPage(captions=[], next_cursor=None)

    @app.get("/v1/collections")
    async def collections() -> Collections:
        return Collections(collections=[])

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


def picture(kind: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, kind)
    return buffer.getvalue()


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"image_id": f"photo {n}", "language": "de", "caption": f"ein Hund, der {n}."}
        for n in range(count)
    ]
