"""Errors as problem details (RFC 9457). Every unsuccessful answer of the app has this format."""

import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mla_ray.serving.breaker import IndexUnavailable
from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.engines import Fault, IndexNotWritable
from mla_ray.serving.schemas import PROBLEM_JSON, Problem, ProblemKind

RETRY_AFTER_S = 1
INDEX_RETRY_AFTER_S = 2  # enough for the next probe of a server that is back
PACK_RETRY_AFTER_S = 2  # enough for the replacement of a pack to complete
STATUS_OF_FAULT = {
    ProblemKind.PACK_UNAVAILABLE: 503,
    ProblemKind.NOT_ENCODED: 500,
    ProblemKind.BAD_IMAGE: 422,
    ProblemKind.INVALID_REQUEST: 422,
}
PROBLEM = "mla.problem"
"""Key of an ASGI scope: the kind of the problem that is the answer."""

log = logging.getLogger(__name__)


class FieldError(TypedDict):
    """Location and message of an error in a request, or of an input that has no result."""

    loc: list[str]
    msg: str


class ProblemError(Exception):
    """Exception that the app answers with problem details.

    `kind` is a `ProblemKind`, or the reason phrase of the status in lower case with hyphens.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: Sequence[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def response(self) -> Response:
        """Return the HTTP response."""
        problem = Problem(
            type=f"urn:mla-ray:problem:{self.kind}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            errors=None if self.errors is None else [dict(error) for error in self.errors],
        )
        body = problem.model_dump_json(exclude_none=True)
        return _ProblemResponse(self.kind, body, self.status, self.headers)


class _ProblemResponse(Response):
    """Response that leaves its kind in the scope, where `Guard` finds it for the metrics."""

    def __init__(
        self, kind: str, body: str, status: int, headers: Mapping[str, str] | None
    ) -> None:
        super().__init__(body, status, headers, PROBLEM_JSON)
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PROBLEM] = self._kind
        await super().__call__(scope, receive, send)


def overloaded(detail: str, retry_after_s: int = RETRY_AFTER_S) -> ProblemError:
    """Return a problem with status 503: the server is overloaded."""
    return ProblemError(503, ProblemKind.OVERLOADED, detail, headers=retry_after(retry_after_s))


def too_many_requests(detail: str) -> ProblemError:
    """Return a problem with status 429: one client exceeded its rate limit."""
    kind = ProblemKind.TOO_MANY_REQUESTS
    return ProblemError(429, kind, detail, headers=retry_after(RETRY_AFTER_S))


def invalid(location: Sequence[str], message: str) -> ProblemError:
    """Return a problem with status 422: the request is malformed at a location.

    Args:
        location: Path to the bad value, such as `("query", "k")`.
        message: Description of the error.

    """
    error = FieldError(loc=list(location), msg=message)
    return _malformed([error])


def several_sources(sources: Iterable[str]) -> ProblemError:
    """Return a problem with status 422: an image id without a source is ambiguous."""
    names = ", ".join(sorted(sources))
    return invalid(("query", "source"), f"several sources have that id ({names}); set one of them")


def of_fault(fault: Fault, errors: Sequence[FieldError] | None = None) -> ProblemError:
    """Return the problem for a fault of an engine.

    Args:
        fault: Reason why there is no result.
        errors: The inputs without a result, if the request has several inputs.

    """
    status = STATUS_OF_FAULT[fault.kind]
    headers = retry_after(PACK_RETRY_AFTER_S) if status == 503 else None
    return ProblemError(status, fault.kind, fault.detail, errors, headers)


def retry_after(seconds: int) -> dict[str, str]:
    """Return a Retry-After header."""
    return {"Retry-After": str(seconds)}


def install(app: FastAPI) -> None:
    """Register exception handlers that turn every exception of `app` into a problem."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101  as registered below
        return error.response()

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        # The input is left out: it may be long, and the client knows it.
        errors = [
            FieldError(loc=[str(name) for name in invalid["loc"]], msg=invalid["msg"])
            for invalid in error.errors()[:100]
        ]
        return _malformed(errors).response()

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        kind = ProblemKind.TOO_LARGE if error.status_code == 413 else phrase
        return ProblemError(
            error.status_code, kind, str(error.detail), headers=error.headers
        ).response()

    async def on_overload(request: Request, error: Exception) -> Response:
        assert isinstance(error, Overloaded)  # noqa: S101
        detail = f"the server is at its limit ({error}); try again"
        return overloaded(detail, error.retry_after_s).response()

    async def on_not_writable(request: Request, error: Exception) -> Response:
        cause = getattr(error, "cause", error)  # the text of Ray's own error is a traceback
        detail = f"the index cannot be written now: {cause}"
        return ProblemError(507, ProblemKind.INDEX_NOT_WRITABLE, detail).response()

    async def on_unavailable(request: Request, error: Exception) -> Response:
        # The text of the error is not used: it names an address inside the network of the server.
        detail = "the server of the index does not answer; try again"
        headers = retry_after(INDEX_RETRY_AFTER_S)
        kind = ProblemKind.INDEX_UNAVAILABLE
        return ProblemError(503, kind, detail, headers=headers).response()

    async def on_timeout(request: Request, error: Exception) -> Response:
        detail = "no answer in time; try again, or send less at a time"
        return ProblemError(504, ProblemKind.TIMEOUT, detail).response()

    async def on_fault(request: Request, error: Exception) -> Response:
        # Log the type and traceback only: the text of the error may quote user input.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in %s\n%s", type(error).__name__, request.method, where)
        detail = "the server failed; see its log"
        return ProblemError(500, ProblemKind.INTERNAL_ERROR, detail).response()

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Overloaded, on_overload)
    app.add_exception_handler(IndexNotWritable, on_not_writable)
    app.add_exception_handler(IndexUnavailable, on_unavailable)
    app.add_exception_handler(TimeoutError, on_timeout)
    app.add_exception_handler(Exception, on_fault)


def _malformed(errors: Sequence[FieldError]) -> ProblemError:
    where = "/".join(errors[0]["loc"]) if errors else "request"
    what = errors[0]["msg"] if errors else "malformed"
    return ProblemError(422, ProblemKind.INVALID_REQUEST, f"{where}: {what}", errors)
