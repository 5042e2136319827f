"""Middleware that checks the host, token, rate, size, number and duration of requests."""

import asyncio
import hmac
import math
import time
from collections.abc import Callable

from fastapi import HTTPException
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mla_ray.serving.metrics import Metrics
from mla_ray.serving.problems import PROBLEM, ProblemError, overloaded, too_many_requests
from mla_ray.serving.public_path import app_path
from mla_ray.serving.schemas import (
    CAPTIONS_PATH,
    EMBED_IMAGE_PATH,
    HEALTH_PATH,
    IMAGES_PATH,
    MAX_BODY_BYTES,
    MAX_IMAGE_BYTES,
    MAX_INGEST_BYTES,
    SEARCH_IMAGE_PATH,
    ProblemKind,
)
from mla_ray.serving.settings import Settings

MAX_BYTES = {
    CAPTIONS_PATH: MAX_INGEST_BYTES,
    SEARCH_IMAGE_PATH: MAX_IMAGE_BYTES,
    EMBED_IMAGE_PATH: MAX_IMAGE_BYTES,
}
WITHOUT_TOKEN = ("/", HEALTH_PATH)  # the page prompts for the token; health probes have none
PAGE_FILES = "/page/"
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
    """ASGI middleware that admits requests, adds security headers and records metrics.

    Args:
        app: Next ASGI app.
        settings: Settings of the server.
        metrics: Destination of the metrics.
        expected_wait_s: Returns the time in seconds that a new request with this method and path
            would wait.

    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        expected_wait_s: Callable[[str, str], float],
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._expected_wait_s = expected_wait_s
        self._token = settings.token()
        self._hosts = {host.lower() for host in settings.hosts}
        self._in_flight = 0
        self._rate = parse(settings.rate) if settings.rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":  # startup and shutdown of the app
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
        self._metrics.in_flight(self._in_flight)
        try:
            await self._admit(scope)
            limit = None if app_path(scope) == CAPTIONS_PATH else self._settings.timeout_s
            async with asyncio.timeout(limit):
                await self._app(scope, _bounded(scope, receive), answer)
        except ProblemError as error:
            await error.response()(scope, receive, answer)
        except TimeoutError:
            if status:  # the answer has started, so it can only be cut off
                raise
            detail = f"no answer within {self._settings.timeout_s:g} s"
            problem = ProblemError(504, ProblemKind.TIMEOUT, detail)
            await problem.response()(scope, receive, answer)
        except Exception:  # the outermost middleware answers it with 500
            status, scope[PROBLEM] = status or 500, ProblemKind.INTERNAL_ERROR
            raise
        finally:
            self._in_flight -= 1
            self._metrics.in_flight(self._in_flight)
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            kind = scope.get(PROBLEM)
            self._metrics.request(scope["method"], route, status or 499, seconds, kind)

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if "*" not in self._hosts:
            # Prevents DNS rebinding: a foreign page whose name resolves to loopback could otherwise
            # reach this server through its visitor's browser.
            name = headers.get(b"host", b"").decode("latin-1").lower()
            if name.rpartition(":")[0] not in self._hosts and name not in self._hosts:
                detail = "this server does not answer to that host name"
                raise ProblemError(421, ProblemKind.WRONG_HOST, detail)
        if self._in_flight > self._settings.max_in_flight:
            raise overloaded("too many requests are under way; try again")
        path = app_path(scope)
        if self._token and path not in WITHOUT_TOKEN and not path.startswith(PAGE_FILES):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(
                given.strip(), self._token.encode()
            ):
                raise ProblemError(
                    *(401, ProblemKind.UNAUTHORIZED, "send the bearer token"),
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self._rate and path not in WITHOUT_TOKEN:
            client = scope.get("client")
            if not await self._limiter.hit(self._rate, client[0] if client else ""):
                raise too_many_requests(f"more than {self._settings.rate}; slow down")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > _limit(scope):
            raise _too_large(_limit(scope))
        # The queues check the wait too. Here a refusal costs neither a body nor its parsing.
        wait_s = self._expected_wait_s(scope["method"], path)
        if wait_s > self._settings.max_wait_s:
            detail = f"a new request would wait {wait_s:.0f} s; try again"
            raise overloaded(detail, math.ceil(wait_s))


def _limit(scope: Scope) -> int:
    """Return the maximum size of a request's body in bytes."""
    path = app_path(scope)
    if path.startswith(f"{IMAGES_PATH}/"):
        return MAX_IMAGE_BYTES
    return MAX_BYTES.get(path, MAX_BODY_BYTES)


def _too_large(limit: int) -> ProblemError:
    detail = f"the body of this request may have at most {limit:,} bytes"
    return ProblemError(413, ProblemKind.TOO_LARGE, detail)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Count the received bytes, as a chunked request does not declare its length."""
    limit, received = _limit(scope), 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            # An HTTPException, as FastAPI reports other exceptions as a malformed body.
            raise HTTPException(413, _too_large(limit).detail)
        return message

    return bounded
