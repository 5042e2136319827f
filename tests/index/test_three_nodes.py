"""Promises of a Qdrant cluster with two copies of each shard: one node may die, and come back."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient, models

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.server import connect
from mla_ray.index.settings import IndexSettings
from mla_ray.index.status import status_of
from mla_ray.runtime.cluster import free_port
from tests.support.qdrant import OwnQdrant, own_qdrant

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 8)
SETTINGS = IndexSettings(replication_factor=2, shard_number=6, write_consistency_factor=1)
PATIENCE = 120  # seconds for what comes sooner or later
AFTER_A_KILL = 2  # seconds until every search is answered
BATCH = 20


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[OwnQdrant]]:
    with ExitStack() as stack:
        started: list[OwnQdrant] = []
        first = f"http://127.0.0.1:{free_port()}"
        for number in range(3):
            uri = f"http://127.0.0.1:{free_port()}" if started else first
            join = ("--bootstrap", first) if started else ()
            node = own_qdrant(
                tmp_path / str(number),
                *("--uri", uri, *join),
                QDRANT__CLUSTER__ENABLED="true",
                QDRANT__CLUSTER__P2P__PORT=uri.rpartition(":")[2],
            )
            started.append(stack.enter_context(node))
        with closing(connect(started[0].urls["http"])) as client:
            wait_until(lambda: len(peers(client)) == 3)
        yield started


def peers(client: QdrantClient) -> dict[str, models.PeerInfo]:
    """The nodes that a node knows."""
    status = client.cluster_status()
    return status.peers if isinstance(status, models.ClusterStatusOneOf1) else {}


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def batch(number: int) -> tuple[list[Entry], npt.NDArray[np.float32]]:
    names = [f"c{number}-{i}" for i in range(BATCH)]
    entries = [Entry(name, name, "de", name, "s") for name in names]
    rng = np.random.default_rng(number)
    return entries, rng.normal(size=(BATCH, SPACE.dim)).astype(np.float32)


class Writer:
    """A thread that writes batches while the context is open, and what was acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[Entry] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._stop.set()
        self._thread.join()

    def goes_on(self, batches: int) -> None:
        """Wait until that many more batches are acknowledged."""
        before = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= before + batches * BATCH)

    def _write(self) -> None:
        with CaptionIndex.open(self._url, SPACE) as index:
            number = 0
            while not self._stop.is_set():
                entries, vectors = batch(number)
                try:
                    index.upsert(entries, vectors)
                except (ConnectionError, RuntimeError):
                    continue  # not acknowledged: the same again, as `patiently` does
                self.acknowledged.extend(entries)
                number += 1


def assert_searches_answer(index: CaptionIndex) -> None:
    """Assert that 200 searches find what is in the first ten batches."""
    for number in range(200):
        entries, vectors = batch(number % 10)
        hits = index.search(vectors[number % BATCH], 1)
        assert [hit.entry for hit in hits] == [entries[number % BATCH]]


@pytest.mark.server
def test_a_killed_node_costs_no_answer_and_no_acknowledged_point(
    nodes: list[OwnQdrant],
) -> None:
    url = nodes[0].urls["http"]
    with CaptionIndex.open(url, SPACE, settings=SETTINGS) as index:
        copies = status_of(url).collections[0].replicas
        assert len(copies) == 12
        assert len({copy.peer for copy in copies}) == 3
        with Writer(url) as writer:
            writer.goes_on(batches=10)
            nodes[2].kill()
            time.sleep(AFTER_A_KILL)
            assert_searches_answer(index)
            writer.goes_on(batches=1)
        assert set(index.entries()) >= set(writer.acknowledged)
        dead = [copy for copy in status_of(url).collections[0].replicas if copy.state != "Active"]
        assert {copy.state for copy in dead} == {"Dead"}
        assert len({copy.peer for copy in dead}) == 1


@pytest.mark.server
def test_a_node_that_comes_back_under_load_gets_all_that_it_missed(
    nodes: list[OwnQdrant],
) -> None:
    url = nodes[0].urls["http"]

    def states() -> set[str]:
        return {copy.state for copy in status_of(url).collections[0].replicas}

    with CaptionIndex.open(url, SPACE, settings=SETTINGS) as index:
        with Writer(url) as writer:
            writer.goes_on(batches=10)
            nodes[2].kill()
            wait_until(lambda: "Dead" in states())
            writer.goes_on(batches=10)
            nodes[2].start()
            assert_searches_answer(index)
            wait_until(lambda: states() == {"Active"})
            writer.goes_on(batches=1)
        nodes[1].kill()  # some shards now have the copy of the node that came back, and no other
        time.sleep(AFTER_A_KILL)
        assert_searches_answer(index)
        assert set(index.entries()) >= set(writer.acknowledged)
