"""Splitting of a byte stream into the numbered lines of NDJSON, with bounded memory."""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator

from mla_ray.serving.schemas import MAX_LINE


async def lines_of(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes | None]]:
    """Split a stream of bytes into lines. A byte order mark at the start is skipped.

    Yields:
        The line number, counted from 1, and the line without its newline. The line is None if it
        is longer than `MAX_LINE` bytes.

    """
    number, kept, overlong, begun = 1, b"", False, False
    async for chunk in body:
        if not begun:  # the byte order mark may arrive in several chunks
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
