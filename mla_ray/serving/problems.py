"""Errors as problem details (RFC 9457). Every answer that is no success is one."""

import logging
import traceback
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from mla_ray.serving.coalescing import Overloaded
from mla_ray.serving.schemas import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
log = logging.getLogger(__name__)


class ProblemError(Exception):
    """Answered as it is."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: list[dict[str, Any]] | None = None,
        **headers: str,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def overloaded(detail: str, status: int = 503) -> ProblemError:
    kind = "overloaded" if status == 503 else "too-many-requests"
    return ProblemError(status, kind, detail, Retry_After=str(RETRY_AFTER_S))


def respond(
    status: int,
    kind: str,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> Response:
    problem = Problem(
        type=f"urn:mla-ray:problem:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors,
    )
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every exception of `app` a problem."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101  as registered below
        return respond(error.status, error.kind, error.detail, error.headers, error.errors)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        # Not what was sent: it may be long, and is the sender's already.
        errors = [
            {"loc": [str(part) for part in found["loc"]], "msg": found["msg"]}
            for found in error.errors()[:100]
        ]
        where = "/".join(errors[0]["loc"]) if errors else "request"
        what = errors[0]["msg"] if errors else "malformed"
        return respond(422, "invalid-request", f"{where}: {what}", errors=errors)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        kind = "too-large" if error.status_code == 413 else phrase
        return respond(error.status_code, kind, str(error.detail), dict(error.headers or {}))

    async def on_overload(request: Request, error: Exception) -> Response:
        problem = overloaded(f"the server is at its limit ({error}); try again")
        return respond(problem.status, problem.kind, problem.detail, problem.headers)

    async def on_timeout(request: Request, error: Exception) -> Response:
        return respond(504, "timeout", "no answer in time; try again, or with less at a time")

    async def on_fault(request: Request, error: Exception) -> Response:
        # The kind of error and where, never its text: that may quote what a user wrote.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in %s\n%s", type(error).__name__, request.method, where)
        return respond(500, "internal-error", "the server failed; its log has more")

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Overloaded, on_overload)
    app.add_exception_handler(TimeoutError, on_timeout)
    app.add_exception_handler(Exception, on_fault)
