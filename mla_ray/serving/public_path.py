"""Public path prefix of the app behind a reverse proxy, such as `/search`.

The prefix comes from the settings or from the proxy's header `X-Forwarded-Prefix`. ASGI's
`root_path` holds it, so the routes of the app have no prefix; `app_path` returns the path without
it. A proxy may remove the prefix from the path of a request or keep it. A `route_prefix` of Ray
Serve is also supported.
"""

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = re.compile(r"(/[\w.~-]+)*", re.ASCII)
_MAX_PREFIX = 256


def checked_prefix(prefix: str) -> str:
    """Return a prefix without a slash at the end; `/` becomes an empty string.

    Raises:
        ValueError: The prefix is not a plain URL path, or is too long.

    """
    prefix = prefix.rstrip("/")
    dots = {".", ".."} & set(prefix.split("/"))
    if len(prefix) > _MAX_PREFIX or dots or not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix[:_MAX_PREFIX]!r} is not a path such as /search")
    return prefix


def app_path(scope: Scope) -> str:
    """Return the path of a request without its prefix, such as `/v1/search`."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


class PublicPath:
    """ASGI middleware that adds the prefix of a request to `root_path`."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection. Redirect the bare prefix to the prefix with a slash."""
        prefix = (self._root_path or _forwarded(scope)) if scope["type"] == "http" else ""
        if not prefix:
            await self._app(scope, receive, send)
            return
        path, inner = scope["path"], scope.get("root_path", "")
        if path == prefix:  # without the slash, relative addresses of the page would be wrong
            query = scope["query_string"].decode("latin-1")
            target = f"{prefix}/" + (f"?{query}" if query else "")
            await RedirectResponse(target)(scope, receive, send)
            return
        if path.startswith(f"{prefix}/"):  # the proxy kept the prefix
            path, inner = path.removeprefix(prefix), inner.removeprefix(prefix)
        under = {**scope, "root_path": prefix + inner, "path": prefix + path}
        await self._app(under, receive, send)


def _forwarded(scope: Scope) -> str:
    """Return the proxy's prefix, or "" if it is invalid, as a client can send this header too."""
    given = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode("latin-1")
    try:
        return checked_prefix(given)
    except ValueError:
        return ""
