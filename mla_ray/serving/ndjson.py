"""A stream of bytes as the numbered lines of NDJSON, none of them kept that is too long."""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator

from mla_ray.serving.schemas import MAX_LINE


async def lines_of(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from 1; None for one that is longer than MAX_LINE.

    A byte order mark before the first is passed over.
    """
    number, kept, overlong, begun = 1, b"", False, False
    async for chunk in body:
        if not begun:  # a body may come byte by byte
            kept += chunk
            if len(kept) < len(BOM_UTF8) and BOM_UTF8.startswith(kept):
                continue
            chunk, kept, begun = kept.removeprefix(BOM_UTF8), b"", True
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            overlong = overlong or len(kept) + len(piece) > MAX_LINE
            yield number, None if overlong else kept + piece
            number, kept, overlong = number + 1, b"", False
        overlong = overlong or len(kept) + len(rest) > MAX_LINE
        kept = b"" if overlong else kept + rest
    if kept or overlong:
        yield number, None if overlong else kept
