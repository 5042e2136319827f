"""Promise of a Qdrant cluster with two copies of each shard: one node may die."""

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


@pytest.mark.server
def test_a_killed_node_costs_no_answer_and_no_acknowledged_point(
    nodes: list[OwnQdrant],
) -> None:
    url = nodes[0].urls["http"]
    acknowledged: list[Entry] = []
    stop = threading.Event()
    with CaptionIndex.open(url, SPACE, settings=SETTINGS) as index:
        copies = status_of(url).collections[0].replicas
        assert len(copies) == 12
        assert len({copy.peer for copy in copies}) == 3

        def write() -> None:
            with CaptionIndex.open(url, SPACE) as own:
                number = 0
                while not stop.is_set():
                    entries, vectors = batch(number)
                    try:
                        own.upsert(entries, vectors)
                    except (ConnectionError, RuntimeError):
                        continue  # not acknowledged: the same again, as `patiently` does
                    acknowledged.extend(entries)
                    number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            wait_until(lambda: len(acknowledged) >= 10 * BATCH)
            nodes[2].kill()
            time.sleep(AFTER_A_KILL)
            before = len(acknowledged)
            for number in range(200):
                entries, vectors = batch(number % 10)
                hits = index.search(vectors[number % BATCH], 1)
                assert [hit.entry for hit in hits] == [entries[number % BATCH]]
            wait_until(lambda: len(acknowledged) >= before + BATCH)  # writing goes on, too
        finally:
            stop.set()
            writer.join()
        assert set(index.entries()) >= set(acknowledged)
        dead = [copy for copy in status_of(url).collections[0].replicas if copy.state != "Active"]
        assert {copy.state for copy in dead} == {"Dead"}
        assert len({copy.peer for copy in dead}) == 1
