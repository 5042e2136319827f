"""Where clients see the app: behind a reverse proxy, under a path such as `/search`.

The app itself knows no prefix: ASGI's `root_path` has it, and `app_path` is what follows. It is
that of the settings, else the proxy's `X-Forwarded-Prefix`; whether the proxy takes it off the path
of a request or leaves it there makes no difference. Under a prefix of Ray Serve's own
(`route_prefix`) the same holds.
"""

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = re.compile(r"(/[\w.~-]+)*", re.ASCII)
_MAX_PREFIX = 256


def checked_prefix(prefix: str) -> str:
    """A path without a slash at its end, "" of `/`; ValueError if it could be anything else."""
    prefix = prefix.rstrip("/")
    dots = {".", ".."} & set(prefix.split("/"))
    if len(prefix) > _MAX_PREFIX or dots or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix[:_MAX_PREFIX]!r} is no path such as /search")
    return prefix


def app_path(scope: Scope) -> str:
    """What of a request's path the app answers to: `/v1/search`."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


class PublicPath:
    """ASGI middleware that has the prefix of every request in `root_path`."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = (self._root_path or _forwarded(scope)) if scope["type"] == "http" else ""
        if not prefix:
            await self._app(scope, receive, send)
            return
        path, inner = scope["path"], scope.get("root_path", "")
        if path == prefix:  # relative addresses of a page there would be taken from above it
            query = scope["query_string"].decode("latin-1")
            target = f"{prefix}/" + (f"?{query}" if query else "")
            await RedirectResponse(target)(scope, receive, send)
            return
        if path.startswith(f"{prefix}/"):  # the proxy left it there
            path, inner = path.removeprefix(prefix), inner.removeprefix(prefix)
        under = {**scope, "root_path": prefix + inner, "path": prefix + path}
        await self._app(under, receive, send)


def _forwarded(scope: Scope) -> str:
    """What a proxy says; "" of what is no path, which a client may have made up."""
    given = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode("latin-1")
    try:
        return checked_prefix(given)
    except ValueError:
        return ""
