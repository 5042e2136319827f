"""Errors of a Qdrant server: which of them pass, and what to do about a refusal."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

ERRORS = (
    ResponseHandlingException,  # no connection, or no response in time
    ResourceExhaustedResponse,  # 429
    UnexpectedResponse,
    grpc.RpcError,
)
"""Errors of the client, over HTTP and gRPC."""
API_KEY = "QDRANT_API_KEY"
"""Environment variable of the server's key."""
CA_FILE = "SSL_CERT_FILE"
"""Environment variable of the file of certificate authorities."""
MAX_SAID = 300
"""Most characters of an answer that a message repeats."""
FULL = "no space left on device"
"""What a server says about its disk, in lower case: itself, or in the words of its system."""


def _is_passing(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (408, 429, 502, 503, 504)
    if isinstance(error, grpc.RpcError):
        codes = grpc.StatusCode
        return error.code() in (
            codes.UNAVAILABLE,
            codes.DEADLINE_EXCEEDED,
            codes.RESOURCE_EXHAUSTED,
        )
    return True


def is_full(error: Exception) -> bool:
    """Return whether the server failed because its disk is full."""
    if isinstance(error, UnexpectedResponse):  # a refusal of input (4xx) may quote the input
        said = error.content.decode(errors="replace").lower()
        return (error.status_code or 0) >= 500 and FULL in said
    if isinstance(error, grpc.RpcError):
        return error.code() == grpc.StatusCode.INTERNAL and FULL in str(error.details()).lower()
    return False


def _said(error: Exception) -> str:
    """Return what the server or the client says, without the client's own words around it."""
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, UnexpectedResponse):
        text = error.content.decode(errors="replace")
        with suppress(ValueError, LookupError, TypeError):  # not JSON of Qdrant: a proxy's page
            text = json.loads(text)["status"]["error"]
        return f"HTTP {error.status_code}: {text[:MAX_SAID].strip() or error.reason_phrase}"
    return str(error)


def _advice(error: Exception) -> str:
    """Return what to do about a refusal, beginning with a semicolon, or an empty string."""
    code = error.code() if isinstance(error, grpc.RpcError) else None
    status = error.status_code if isinstance(error, UnexpectedResponse) else None
    if status == 401 or code == grpc.StatusCode.UNAUTHENTICATED:
        if os.environ.get(API_KEY):
            return f"; {API_KEY} is not a key of this server: set one that is"
        return f"; set {API_KEY} to a key of this server"
    if status == 403 or code == grpc.StatusCode.PERMISSION_DENIED:
        return (
            f"; the key in {API_KEY} lacks this right: one that may only read cannot create "
            "collections or write to them"
        )
    return ""


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Convert errors of the client in the `with` block.

    Args:
        url: URL of the index, for messages.

    Raises:
        ConnectionError: The server does not answer, or the request may succeed later.
        OSError: The disk of the server is full (ENOSPC).
        RuntimeError: The server refuses the request.

    """
    try:
        yield
    except ERRORS as error:
        if is_full(error):
            raise OSError(
                errno.ENOSPC,
                "the disk of the Qdrant server is too full for this write, and what was written "
                "before is kept: free some space there, or give it a larger disk, and try again",
                url,
            ) from error
        if _is_passing(error):
            said = _said(error)
            if "CERTIFICATE_VERIFY_FAILED" in said:
                raise ConnectionError(
                    f"the certificate of the Qdrant server at {url} is not trusted: {said}; set "
                    f"{CA_FILE} to the file of the CA that signed it"
                ) from error
            raise ConnectionError(
                f"no Qdrant server answers at {url}: {said}; start one, or use edge:folder"
            ) from error
        raise RuntimeError(
            f"the Qdrant server at {url} refuses: {_said(error)}{_advice(error)}"
        ) from error
