"""Promises for a rebuild on a server that ends at any step: its process, or the server itself."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_ray.index.entry import Entry
from mla_ray.runtime.storage import patiently
from tests.index.places import SERVERS, SPACE, Place, Url
from tests.support import forks
from tests.support.qdrant import OwnQdrant, own_qdrant

OLD, NEW = (
    [Entry(f"{age}{i}", f"i{i}", "de", f"caption {i}", "a") for i in range(20)]
    for age in ("old", "new")
)
VECTORS = np.random.default_rng(0).normal(size=(20, SPACE.dim)).astype(np.float32)
KILLED = 9


class Counting:
    """A client that calls `strike` before its request number `last`, counted from 0, and later."""

    def __init__(self, client: Any, last: int, strike: Callable[[], object]) -> None:
        self._client = client
        self._left = last
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def request(*arguments: Any, **named: Any) -> Any:
            if self._left == 0:
                self._strike()
            else:
                self._left -= 1
            return method(*arguments, **named)

        return request


def rebuild(place: Place, last: int, strike: Callable[[], object]) -> None:
    """Replace OLD by NEW, with `strike` before a request. It is not called if there are fewer."""
    index = place.open(create=False)
    backend: Any = index._backend
    backend.client = Counting(backend.client, last, strike)
    with index.rebuild() as fresh:
        fresh.upsert(NEW, VECTORS)
    backend.client = backend.client._client
    place.leave(index)


def whole(place: Place) -> bool:
    """Assert that the index has all of OLD or all of NEW. Return whether it has NEW."""
    index = patiently(lambda: place.open(create=False))  # a server that was started again
    entries = set(index.entries())
    assert entries in (set(OLD), set(NEW))
    assert {hit.entry for hit in index.search(VECTORS[0], 20)} == entries
    place.leave(index)
    return entries == set(NEW)


def write_old(place: Place) -> None:
    """Rebuild with OLD, and assert that this leaves one version."""
    index = place.open()
    with index.rebuild() as fresh:
        fresh.upsert(OLD, VECTORS)
    backend: Any = index._backend
    names = [collection.name for collection in backend.client.get_collections().collections]
    assert sum(SPACE.fingerprint[:12] in name for name in names) == 1
    place.leave(index)


def assert_old_or_new(place: Place, ends: Callable[[int], bool]) -> None:
    """Assert that the index is whole and can be rebuilt wherever a rebuild ends.

    Args:
        place: Where the index is.
        ends: Rebuilds until before request N. Returns whether there are so many requests.

    """
    write_old(place)
    new: list[bool] = []
    while ends(len(new)):
        new.append(whole(place))
        write_old(place)
    assert whole(place)
    assert new == sorted(new)  # old before the swap, new after it
    assert set(new) == {False, True}


@pytest.mark.parametrize(
    "place",
    ["memory", *(pytest.param(s, marks=pytest.mark.server) for s in SERVERS)],
    indirect=True,
)
def test_a_rebuild_that_ends_before_any_request_leaves_old_or_new(place: Place) -> None:
    """To the index, a process that was killed is one that sends no request any more."""

    class Ended(BaseException):
        pass

    def strike() -> None:
        raise Ended

    def ends(last: int) -> bool:
        try:
            rebuild(place, last, strike)
        except Ended:
            return True
        return False

    assert_old_or_new(place, ends)


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[OwnQdrant]:
    with own_qdrant(tmp_path / "qdrant") as server:
        yield server


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["http", pytest.param("grpc", marks=pytest.mark.slow)])
def test_a_rebuild_whose_server_is_killed_before_any_request_leaves_old_or_new(
    qdrant: OwnQdrant, scheme: str
) -> None:
    place = Url(qdrant.urls[scheme])

    def ends(last: int) -> bool:
        try:
            rebuild(place, last, qdrant.kill)
        except ConnectionError:
            qdrant.start()
            return True
        return False

    assert_old_or_new(place, ends)


def rebuild_until_killed(url: str, last: int) -> None:
    rebuild(Url(url), last, lambda: os._exit(KILLED))


@pytest.mark.slow
@pytest.mark.server
def test_a_rebuild_whose_process_is_killed_before_any_request_leaves_old_or_new(
    qdrant: OwnQdrant,
) -> None:
    url = qdrant.urls["http"]
    assert_old_or_new(Url(url), lambda n: forks.exit_code(rebuild_until_killed, url, n) == KILLED)
