"""Promises of bodies of gzip: the same however they are cut, and never more than a body may be."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from mla_ray.serving.gzip_body import PIECE, content_of, unpacked
from mla_ray.serving.problems import ProblemError

BODY = b"".join(b"%d ein Hund\n" % number for number in range(20_000))


async def sent(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
    yield b""


def pieces(body: bytes, size: int = 1000, limit: int = 1 << 20) -> list[bytes]:
    async def run() -> list[bytes]:
        return [piece async for piece in unpacked(sent(body, size), limit)]

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_what_was_packed_comes_out_however_it_is_cut(size: int) -> None:
    packed = gzip.compress(BODY)
    assert b"".join(pieces(packed, size)) == BODY
    twice = gzip.compress(BODY[:1000]) + gzip.compress(b"") + gzip.compress(BODY[1000:]) + bytes(9)
    assert b"".join(pieces(twice, size)) == BODY
    assert pieces(b"", size) == []


def test_a_bomb_is_refused_where_its_content_is_too_long_and_unpacked_no_further() -> None:
    packed = gzip.compress(bytes(100 << 20))
    assert len(packed) < 200_000
    out: list[int] = []

    async def run() -> None:
        async for piece in unpacked(sent(packed, len(packed)), limit=1 << 20):
            out.append(len(piece))

    with pytest.raises(ProblemError) as caught:
        asyncio.run(run())
    assert (caught.value.status, caught.value.kind) == (413, "too-large")
    assert sum(out) <= 1 << 20
    assert max(out) <= PIECE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "not gzip"),
        (gzip.compress(BODY, mtime=0)[:-1], "incomplete"),
        (gzip.compress(BODY, mtime=0)[:5], "incomplete"),
        (gzip.compress(BODY, mtime=0) + b"more", "not gzip"),
        (zlib.compress(BODY), "not gzip"),
    ],
)
def test_what_is_no_whole_gzip_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as caught:
        pieces(body)
    assert caught.value.status == 422


def test_a_damaged_checksum_is_refused() -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[-6] ^= 1
    with pytest.raises(ProblemError, match="damaged"):
        pieces(bytes(packed))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_another_encoding_is_refused_with_the_one_there_is(encoding: str) -> None:
    with pytest.raises(ProblemError, match="gzip, or none") as caught:
        content_of(sent(BODY, 10), encoding)
    assert caught.value.status == 415
