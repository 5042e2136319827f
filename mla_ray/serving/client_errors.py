"""Exceptions of the clients."""

import httpx2
from pydantic import ValidationError

from mla_ray.serving.schemas import PROBLEM_JSON, TOKEN_VARIABLE, Problem, media_type

SHOWN = 500  # maximum number of characters of a server's text in a message


class ApiError(RuntimeError):
    """The server answered with an error, or with something other than an answer of mla-ray.

    Attributes:
        status: HTTP status of the answer.
        problem: Problem details of the answer, or None if it has none.
        answer: Start of the answer's text if there are no problem details.

    """

    def __init__(self, status: int, problem: Problem | None, answer: str = "") -> None:
        super().__init__(status, problem, answer)  # all arguments, for pickling
        self.status = status
        self.problem = problem
        self.answer = answer

    def __str__(self) -> str:
        text = f"{self.problem.title}: {self.problem.detail}" if self.problem else self.answer
        return f"{self.status} {printable(text).rstrip(': ')}".rstrip()


class Unauthorized(ApiError):
    """Error 401: the token is missing or wrong."""

    def __str__(self) -> str:
        return f"{super().__str__()} (set {TOKEN_VARIABLE}, or pass token= to the client)"


class NotFound(ApiError):
    """Error 404: the server has no such language or image."""


class Invalid(ApiError):
    """Error 422: the request is malformed, or the image cannot be read."""


class Busy(ApiError):
    """Error 429 or 503, still after the last attempt."""


class Unreachable(ConnectionError):
    """The connection failed or broke, still after the last attempt."""


BY_STATUS = {401: Unauthorized, 404: NotFound, 422: Invalid, 429: Busy, 503: Busy}


def api_error(response: httpx2.Response) -> ApiError:
    """Return the exception for a response with an error status."""
    kind = BY_STATUS.get(response.status_code, ApiError)
    content = response.content
    _, _, token = response.request.headers.get("Authorization", "").partition(" ")
    if token:  # a server may echo the request: keep the token out of messages
        content = content.replace(token.encode(), b"***")
    if media_type(response.headers.get("Content-Type", "")) == PROBLEM_JSON:
        try:
            return kind(response.status_code, Problem.model_validate_json(content))
        except ValidationError:  # from a proxy: RFC 9457 makes all fields optional
            pass
    text = content[: 4 * SHOWN].decode(errors="replace")
    if response.has_redirect_location:  # not followed, as the token is only for this server
        text = f"it redirects to {response.headers['Location']}; use that address if it is right"
    return kind(response.status_code, None, f"{response.reason_phrase}: {text}")


def printable(text: str) -> str:
    """Return a text on one line, without control characters, at most `SHOWN` characters long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
