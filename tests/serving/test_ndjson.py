"""Promises of the lines of a body: the same however it is cut, and none that is too long."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mla_ray.serving.ndjson import lines_of


def lines(*chunks: bytes) -> list[tuple[int, bytes | None]]:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> list[tuple[int, bytes | None]]:
        return [line async for line in lines_of(body())]

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_do_not_depend_on_how_a_body_is_cut(size: int, mark: bytes) -> None:
    body = mark + b"one\n\ntwo\r\nthree"
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    assert lines(*chunks) == [(1, b"one"), (2, b""), (3, b"two\r"), (4, b"three")]


@pytest.mark.parametrize("size", [1000, 65_536, 10**6])
def test_a_line_that_is_too_long_is_none_and_the_next_is_there(size: int) -> None:
    body = b"a" * 65_536 + b"\n" + b"b" * 65_537 + b"\nc\n" + b"d" * 70_000
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    assert lines(*chunks) == [(1, b"a" * 65_536), (2, None), (3, b"c"), (4, None)]


def test_an_empty_body_has_no_lines() -> None:
    assert lines() == []
    assert lines(b"", b"") == []
    assert lines(b"\n") == [(1, b"")]
