"""Versions of Qdrant servers that mla-ray works with."""

import logging
import re
from functools import cache
from importlib.metadata import version

log = logging.getLogger(__package__)

MINIMUM = (1, 16)
"""Oldest version of a server. Older ones cannot store a collection's record (its metadata)."""
NAMED_LATER = (1, 18)
"""Oldest version that can add a vector to the points of a collection that exists."""
TESTED = "1.18.3"
"""Version that the tests ran against."""


def check_version(found: str, url: str) -> None:
    """Compare the version of a server with those that mla-ray works with.

    A version newer than that of the installed qdrant-client is logged, once a process and server.

    Raises:
        RuntimeError: The server is older than `MINIMUM`.

    """
    numbers = _numbers(found)
    if numbers is None:
        log.warning("the server at %s does not tell its version (found %r)", url, found)
    elif numbers < MINIMUM:
        oldest = ".".join(map(str, MINIMUM))
        raise RuntimeError(
            f"the server at {url} is Qdrant {found}, and mla-ray needs {oldest} or newer; upgrade "
            "the server, one minor version after the other"
        )
    elif numbers > (_numbers(version("qdrant-client")) or numbers):
        _log_newer(found, url)


def require_named_later(found: str, url: str) -> None:
    """Raise a RuntimeError if a server cannot add words to the captions of a collection."""
    if (_numbers(found) or NAMED_LATER) < NAMED_LATER:
        raise RuntimeError(
            f"the server at {url} is Qdrant {found}, and {'.'.join(map(str, NAMED_LATER))} is "
            "needed to add words to a collection; upgrade the server, or fill a new index with "
            "mla collection copy"
        )


def _numbers(text: str) -> tuple[int, int] | None:
    """Return major and minor of a version such as `1.18.3` or `1.19.0-dev`."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


@cache
def _log_newer(found: str, url: str) -> None:
    client = version("qdrant-client")
    log.warning(
        "the server at %s is Qdrant %s, newer than the installed qdrant-client %s (tested: %s); "
        "upgrade mla-ray if a request fails",
        url,
        found,
        client,
        TESTED,
    )
