"""A request's body of gzip, unpacked piece by piece, and no further than a body may be long."""

import asyncio
import zlib
from collections.abc import AsyncIterator

from mla_ray.serving.problems import ProblemError, invalid
from mla_ray.serving.schemas import MAX_INGEST_BYTES, ProblemKind

PIECE = 64 << 10
"""Most bytes that are unpacked at a time: a thousand times what came in might be behind them."""
WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS


def content_of(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """A body as it was before it was sent in this Content-Encoding; a 415 problem of an unknown."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name in ("gzip", "x-gzip"):
        return unpacked(body)
    detail = "Content-Encoding: gzip, or none"
    raise ProblemError(415, ProblemKind.UNSUPPORTED_MEDIA_TYPE, detail)


async def unpacked(
    body: AsyncIterator[bytes], limit: int = MAX_INGEST_BYTES
) -> AsyncIterator[bytes]:
    """The content of gzip, of several members as `cat a.gz b.gz` makes them, too.

    Memory is that of a piece, whatever the body says it holds. More than `limit` bytes of content
    are a 413 problem, what is no gzip or is broken off a 422 problem.
    """
    member, size, is_begun = _member(), 0, False
    async for chunk in body:
        rest = chunk
        # Zeros may follow a member, as of a tape.
        while rest := rest if is_begun else rest.lstrip(b"\0"):
            try:
                piece = member.decompress(rest, PIECE)
            except zlib.error as error:
                raise invalid(("body",), f"not gzip, or damaged ({error})") from error
            is_begun, rest = True, member.unconsumed_tail
            size += len(piece)
            if size > limit:
                detail = f"a request here has at most {limit:,} bytes when unpacked; send parts"
                raise ProblemError(413, ProblemKind.TOO_LARGE, detail)
            if piece:
                yield piece
                await asyncio.sleep(0)  # a small body may hold long work: others go on
            if member.eof:
                rest, member, is_begun = member.unused_data, _member(), False
    if is_begun:
        raise invalid(("body",), "the gzip is broken off; send it again")


def _member() -> "zlib._Decompress":
    return zlib.decompressobj(WITH_GZIP_HEADER)
