"""Promises for a Qdrant server whose disk is full: it is told, and nothing written is lost."""

import errno
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from qdrant_client.http.exceptions import UnexpectedResponse

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.server import connect
from mla_ray.index.server_errors import reaching
from mla_ray.index.sink import FIELDS, upsert_block
from mla_ray.index.status import status_of
from mla_ray.runtime import storage
from mla_ray.runtime.exit_codes import Exit, exit_code
from tests.support.disks import MB, fill
from tests.support.qdrant import OwnQdrant

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 512)
BATCH = 256
SAID = "No space left on device: WAL buffer size exceeds available disk space"
"""What Qdrant 1.18 says when less is free than two pieces of its log (64 MB)."""


class RpcError(grpc.RpcError):
    """An error as grpc's channels raise it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = lambda: code
        self.details = lambda: details


def response(status: int) -> UnexpectedResponse:
    content = f'{{"status": {{"error": "Service internal error: {SAID}"}}}}'.encode()
    return UnexpectedResponse(status, "", content, httpx.Headers())


@pytest.mark.parametrize("error", [response(500), RpcError(grpc.StatusCode.INTERNAL, SAID)])
def test_a_full_disk_of_a_server_is_told_with_the_server_and_the_remedy(error: Exception) -> None:
    with (
        pytest.raises(OSError, match=r"free some space there.*http://there:6333") as full,
        reaching("http://there:6333"),
    ):
        raise error
    assert full.value.errno == errno.ENOSPC
    assert "there:6333" not in full.value.strerror  # which `mla serve` tells its clients
    assert exit_code(full.value) == Exit.AGAIN


@pytest.mark.parametrize("error", [response(400), RpcError(grpc.StatusCode.INVALID_ARGUMENT, SAID)])
def test_a_refusal_that_quotes_these_words_is_no_full_disk(error: Exception) -> None:
    with pytest.raises(RuntimeError, match="refuses"), reaching("http://there:6333"):
        raise error


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, qdrant: OwnQdrant) -> str:
    return qdrant.urls[request.param]


def batch(number: int) -> tuple[list[Entry], npt.NDArray[np.float32]]:
    names = [f"c{number}-{i}" for i in range(BATCH)]
    vectors = np.random.default_rng(number).normal(size=(BATCH, SPACE.dim)).astype(np.float32)
    return [Entry(name, name, "de", name, "s") for name in names], vectors


def block(number: int) -> pa.Table:
    """The same as `PointEncoder` gives it to the tasks that write."""
    entries, vectors = batch(number)
    columns = {name: [getattr(entry, name) for entry in entries] for name in FIELDS}
    nothing = pa.nulls(BATCH, pa.string())
    more = {"collection": [CAPTIONS] * BATCH, "reason": nothing, "hash": nothing}
    return pa.table({**columns, **more, "vector": pa.array(list(vectors))})


def written_until_full(index: CaptionIndex, start: int) -> int:
    """Write the batches from `start` on until one is refused. Return its number."""
    for number in range(start, start + 400):
        try:
            index.upsert(*batch(number))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the disk is not full")


def assert_found(index: CaptionIndex, batches: int) -> None:
    """Assert that the batches are listed whole, and that searches find entries of each."""
    assert set(index.entries()) >= {entry for n in range(batches) for entry in batch(n)[0]}
    for number in range(batches):
        entries, vectors = batch(number)
        assert [hit.entry for hit in index.search(vectors[7], 1)] == [entries[7]]


@pytest.mark.server
def test_a_full_disk_loses_nothing_and_is_written_again_when_it_has_space(
    disk: Path, qdrant: OwnQdrant, url: str
) -> None:
    with CaptionIndex.open(url, SPACE) as index:
        taken = fill(disk, leave=80 * MB)
        written = written_until_full(index, 0)
        assert written > 0
        assert_found(index, written)
        taken.unlink()
        assert index.upsert(*batch(written)) == BATCH
        assert_found(index, written + 1)
        fill(disk, leave=80 * MB)
        written = written_until_full(index, written + 1)
        qdrant.kill()
        taken.unlink()  # without space the server itself does not start
        qdrant.start()
        assert_found(index, written)
        assert index.upsert(*batch(written)) == BATCH


@pytest.mark.server
def test_all_that_needs_space_is_refused_alike_and_searches_go_on(disk: Path, url: str) -> None:
    with CaptionIndex.open(url, SPACE) as index:
        for number in range(3):
            index.upsert(*batch(number))
        taken = fill(disk, leave=30 * MB)
        refused: list[Callable[[], object]] = [
            lambda: index.upsert(*batch(3)),
            lambda: index.delete(batch(0)[0]),
            lambda: index.rebuild().__enter__(),
            lambda: CaptionIndex.open(url, SPACE, "another"),
        ]
        for write in refused:
            with pytest.raises(OSError, match="free some space") as full:
                write()
            assert full.value.errno == errno.ENOSPC
            assert url in str(full.value)
            assert_found(index, 3)
            index.ping()
        assert CaptionIndex.open(url, SPACE).count() == 3 * BATCH
        with closing(connect(url)) as client:
            names = [found.name for found in client.get_collections().collections]
        assert [name for name in names if name.startswith(CAPTIONS)] == [
            f"{CAPTIONS}-{SPACE.fingerprint[:12]}-v1"
        ]
        taken.unlink()
        with index.rebuild() as fresh:
            fresh.upsert(*batch(3))
        assert set(index.entries()) == set(batch(3)[0])
        assert CaptionIndex.open(url, SPACE, "another").count() == 0
        assert len(status_of(url).collections) == 2


@pytest.mark.server
def test_bulk_indexing_waits_for_space_and_gives_up_without_it(
    disk: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    with CaptionIndex.open(url, SPACE) as index:
        taken = fill(disk, leave=30 * MB)
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", waits.append)
            with pytest.raises(OSError, match="free some space"):
                upsert_block({CAPTIONS: index}, block(0))
        assert waits == list(storage.PAUSES)
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda _: taken.unlink())
            assert upsert_block({CAPTIONS: index}, block(0)).written[CAPTIONS] == BATCH
        assert_found(index, 1)
