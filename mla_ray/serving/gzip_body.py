"""Decompression of gzip request bodies piece by piece, up to the size limit of a body."""

import asyncio
import zlib
from collections.abc import AsyncIterator

from mla_ray.serving.problems import ProblemError, invalid
from mla_ray.serving.schemas import MAX_INGEST_BYTES, ProblemKind

PIECE = 64 << 10
"""Maximum number of bytes decompressed at a time, as gzip data may expand a thousandfold."""
WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS


def content_of(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Decode a body that was sent with a Content-Encoding header.

    Args:
        body: Chunks of the body as received.
        encoding: Value of the header: empty, `identity`, `gzip` or `x-gzip`.

    Returns:
        Chunks of the decoded body.

    Raises:
        ProblemError: Status 415: the encoding is unknown.

    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name in ("gzip", "x-gzip"):
        return unpacked(body)
    detail = "Content-Encoding must be gzip, or none"
    raise ProblemError(415, ProblemKind.UNSUPPORTED_MEDIA_TYPE, detail)


async def unpacked(
    body: AsyncIterator[bytes], limit: int = MAX_INGEST_BYTES
) -> AsyncIterator[bytes]:
    """Decompress a gzip body. It may have several members, as from `cat a.gz b.gz`.

    At most `PIECE` decompressed bytes are in memory.

    Yields:
        Pieces of the content, at most `PIECE` bytes each.

    Raises:
        ProblemError: Status 413: the content is larger than `limit` bytes. Status 422: the body is
            not gzip, is damaged or is incomplete.

    """
    member, size, is_begun = _member(), 0, False
    async for chunk in body:
        rest = chunk
        # A member may be padded with zeros, as on tapes.
        while rest := rest if is_begun else rest.lstrip(b"\0"):
            try:
                piece = member.decompress(rest, PIECE)
            except zlib.error as error:
                raise invalid(("body",), f"not gzip, or damaged ({error})") from error
            is_begun, rest = True, member.unconsumed_tail
            size += len(piece)
            if size > limit:
                detail = f"the body has more than {limit:,} bytes when unpacked; send it in parts"
                raise ProblemError(413, ProblemKind.TOO_LARGE, detail)
            if piece:
                yield piece
                await asyncio.sleep(0)  # a small body may take long: let other requests run
            if member.eof:
                rest, member, is_begun = member.unused_data, _member(), False
    if is_begun:
        raise invalid(("body",), "the gzip data is incomplete; send it again")


def _member() -> "zlib._Decompress":
    return zlib.decompressobj(WITH_GZIP_HEADER)
