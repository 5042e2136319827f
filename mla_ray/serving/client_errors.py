"""What a client raises where a server gives no answer, or one that was not asked for."""

import httpx2
from pydantic import ValidationError

from mla_ray.serving.schemas import PROBLEM_JSON, TOKEN_VARIABLE, Problem, media_type

SHOWN = 500  # characters of a server's text in a message


class ApiError(RuntimeError):
    """The server answered, but not with what was asked for. `problem` is its account, if any."""

    def __init__(self, status: int, problem: Problem | None, answer: str = "") -> None:
        super().__init__(status, problem, answer)  # all of them, so that it can be pickled
        self.status = status
        self.problem = problem
        self.answer = answer  # where it is no problem: its beginning

    def __str__(self) -> str:
        text = f"{self.problem.title}: {self.problem.detail}" if self.problem else self.answer
        return f"{self.status} {printable(text).rstrip(': ')}".rstrip()


class Unauthorized(ApiError):
    """401: the token is missing or wrong."""

    def __str__(self) -> str:
        return f"{super().__str__()} (the client takes it from {TOKEN_VARIABLE}, or as token=)"


class NotFound(ApiError):
    """404: no such language or image."""


class Invalid(ApiError):
    """422: the request is malformed, or the image cannot be read."""


class Busy(ApiError):
    """429 or 503, on the last attempt too."""


class Unreachable(ConnectionError):
    """No connection, or one that broke, on the last attempt too."""


BY_STATUS = {401: Unauthorized, 404: NotFound, 422: Invalid, 429: Busy, 503: Busy}


def api_error(response: httpx2.Response) -> ApiError:
    """The error that a response tells of."""
    kind = BY_STATUS.get(response.status_code, ApiError)
    content = response.content
    _, _, token = response.request.headers.get("Authorization", "").partition(" ")
    if token:  # a server that answers with what it was sent does not get it shown
        content = content.replace(token.encode(), b"***")
    if media_type(response.headers.get("Content-Type", "")) == PROBLEM_JSON:
        try:
            return kind(response.status_code, Problem.model_validate_json(content))
        except ValidationError:  # another's, as of a proxy: all of its fields are optional
            pass
    text = content[: 4 * SHOWN].decode(errors="replace")
    if response.has_redirect_location:  # not followed: a token is for the server it was given for
        text = f"it sends on to {response.headers['Location']}; give that address if it is right"
    return kind(response.status_code, None, f"{response.reason_phrase}: {text}")


def printable(text: str) -> str:
    """One line of it, without what a terminal would obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
