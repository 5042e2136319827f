"""What stands before the app: host, token, rate, size, number and time of requests."""

import asyncio
import hmac
import time
from typing import Any

from fastapi import HTTPException
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mla_ray.serving.metrics import Metrics
from mla_ray.serving.problems import ProblemError, overloaded, respond
from mla_ray.serving.settings import Settings

MIB = 1 << 20
INGEST = "/v1/captions"
BODY_LIMITS = {INGEST: 64 * MIB, "/v1/search/image": 8 * MIB, "/v1/embeddings/image": 8 * MIB}
IMAGE_LIMIT = 8 * MIB  # of PUT /v1/images/…
BODY_LIMIT = 4 * MIB
OPEN = ("/", "/healthz")  # need no token: the page asks for it, a probe has none
OPEN_FOLDER = "/page/"
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """ASGI middleware. It is the outermost, so every answer passes it, and is counted."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._token = settings.token()
        self._hosts = {host.lower() for host in settings.hosts}
        self._in_flight = 0
        self._rate = parse(settings.rate) if settings.rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # start and stop of the app
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._admit(scope)
            limit = None if scope["path"] == INGEST else self._settings.timeout_s
            async with asyncio.timeout(limit):
                await self._app(scope, _bounded(scope, receive), answer)
        except ProblemError as error:
            response = respond(error.status, error.kind, error.detail, error.headers)
            await response(scope, receive, answer)
        except TimeoutError:
            if status:  # the answer had begun; all that is left is to break it off
                raise
            problem = respond(504, "timeout", f"no answer within {self._settings.timeout_s:g} s")
            await problem(scope, receive, answer)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            self._metrics.request(scope["method"], route, status or 499, seconds)

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if "*" not in self._hosts:
            # A page elsewhere whose name is made to point here would otherwise reach a server on
            # loopback through its visitor's browser.
            name = headers.get(b"host", b"").decode("latin-1").lower()
            if name.rpartition(":")[0] not in self._hosts and name not in self._hosts:
                raise ProblemError(421, "wrong-host", "this server does not answer to that name")
        if self._in_flight > self._settings.max_in_flight:
            raise overloaded("too many requests are under way; try again")
        path = scope["path"]
        if self._token and path not in OPEN and not path.startswith(OPEN_FOLDER):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(
                given.strip(), self._token.encode()
            ):
                raise ProblemError(
                    401, "unauthorized", "send the bearer token", WWW_Authenticate="Bearer"
                )
        if self._rate and path not in OPEN:
            client = scope.get("client")
            if not await self._limiter.hit(self._rate, client[0] if client else ""):
                raise overloaded(f"more than {self._settings.rate}; slow down", 429)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > _limit(scope):
            raise _too_large(_limit(scope))


def _limit(scope: Scope) -> int:
    if scope["path"].startswith("/v1/images/"):
        return IMAGE_LIMIT
    return BODY_LIMITS.get(scope["path"], BODY_LIMIT)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "too-large", f"a request here has at most {limit:,} bytes")


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Counts what comes in: a chunked request does not say its length."""
    limit, seen = _limit(scope), 0

    async def bounded() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            # FastAPI's own exception, as it takes others for a malformed body.
            raise HTTPException(413, _too_large(limit).detail)
        return message

    return bounded
