"""Promises of mla_ray.index.transfer: a copy on any engine has the points of its source."""

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mla_ray.index import transfer
from mla_ray.index.backend import CollectionConfig, Point, VectorSpace
from mla_ray.index.batches import Reservoir
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.existing import config_at
from mla_ray.index.server import connect
from mla_ray.index.transfer import Transferred, copy_index
from mla_ray.runtime.progress import Progress
from tests.index.places import INT8

SPACE = VectorSpace("emoji-clip", "0a1b2c3d4e5f6a7b", 16)
OTHER = VectorSpace("ViT-B-32/openai", "f0e1d2c3b4a59687", 16)
NAMES = ["move-images", "move-captions"]
N = 700
VECTORS = np.random.default_rng(0).standard_normal((N, 16), dtype=np.float32)
ENTRIES = [Entry(f"c{n}", f"i{n // 2}", "sw", f"maneno {n}", "s") for n in range(N)]
SERVERS = {"http": "MLA_TEST_QDRANT_URL", "grpc": "MLA_TEST_QDRANT_GRPC_URL"}


def silent(progress: Progress) -> None:
    pass


def points(url: str, name: str = NAMES[1], space: VectorSpace = SPACE) -> dict[str, Point]:
    with CaptionIndex.open(url, space, name, create=False) as index:
        return {point.id: point for point in index.points()}


def are_same(one: dict[str, Point], other: dict[str, Point]) -> bool:
    return one.keys() == other.keys() and all(
        point.payload == other[id_].payload
        and np.abs(np.subtract(point.vector, other[id_].vector)).max() <= 1e-6
        for id_, point in one.items()
    )


@pytest.fixture
def source(tmp_path: Path) -> str:
    """An embedded index with 700 captions and 100 images."""
    url = f"edge:{tmp_path}/source"
    with CaptionIndex.open(url, SPACE, NAMES[1], settings=INT8) as index:
        index.upsert(ENTRIES, VECTORS)
    with CaptionIndex.open(url, SPACE, NAMES[0]) as index:
        index.upsert([Entry(f"i{n}", f"i{n}", "", "", "s") for n in range(100)], VECTORS[:100])
    return url


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.server) for name in SERVERS])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    url = os.environ.get(SERVERS[request.param])
    if not url:
        pytest.skip(f"{SERVERS[request.param]} is not set")

    def forget() -> None:
        for collection in client.get_collections().collections:
            if f"-{SPACE.fingerprint[:12]}-v" in collection.name:
                client.delete_collection(collection.name)

    client = connect(url)
    forget()
    yield url
    forget()
    client.close()


def test_a_copy_is_equal_and_keeps_native_and_quantization(source: str, tmp_path: Path) -> None:
    target = f"edge:{tmp_path}/target"
    done = copy_index(source, target, NAMES, silent)
    assert done == {NAMES[0]: Transferred(100, 100, 100), NAMES[1]: Transferred(N, N, N)}
    for name in NAMES:
        assert are_same(points(source, name), points(target, name))
        assert config_at(target, name) == config_at(source, name)
    with CaptionIndex.open(target, SPACE, NAMES[1], create=False) as index:
        assert index.search(VECTORS[5], 1)[0].entry == ENTRIES[5]


def test_from_a_folder_to_a_server_and_back(source: str, server: str, tmp_path: Path) -> None:
    back = f"edge:{tmp_path}/back"
    copy_index(source, server, NAMES, silent)
    copy_index(server, back, NAMES, silent)
    for name in NAMES:
        assert are_same(points(source, name), points(server, name))
        assert are_same(points(source, name), points(back, name))
    assert config_at(back, NAMES[1]) == config_at(source, NAMES[1])


def test_a_copy_that_was_interrupted_goes_on(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"edge:{tmp_path}/target"
    reports: list[int] = []

    def interrupt(progress: Progress) -> None:
        reports.append(progress.done)
        if len(reports) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_index(source, target, NAMES[1:], interrupt)
    assert len(points(target)) == reports[-1] == 512
    assert copy_index(source, target, NAMES[1:], silent) == {
        NAMES[1]: Transferred(N, N - 512, N),
    }
    assert are_same(points(source), points(target))
    assert copy_index(source, target, NAMES[1:], silent)[NAMES[1]].written == 0


def test_what_changed_is_copied_again_and_what_is_only_in_the_target_stays(
    source: str, tmp_path: Path
) -> None:
    target = f"edge:{tmp_path}/target"
    own = Entry("own", "own", "sw", "yangu", "another source")
    with CaptionIndex.open(target, SPACE, NAMES[1]) as index:
        index.upsert([own], VECTORS[:1])
    copy_index(source, target, NAMES[1:], silent)
    with CaptionIndex.open(source, SPACE, NAMES[1]) as index:
        index.upsert(ENTRIES[:1], VECTORS[1:2])
    assert copy_index(source, target, NAMES[1:], silent)[NAMES[1]].written == 1
    there = points(target)
    mine = {id_ for id_, point in there.items() if point.payload["id"] == "own"}
    assert len(mine) == 1
    assert are_same(points(source), {id_: there[id_] for id_ in there.keys() - mine})


def test_another_native_is_refused_before_anything_is_written(source: str, tmp_path: Path) -> None:
    target = f"edge:{tmp_path}/target"
    CaptionIndex.open(target, OTHER, NAMES[1]).close()
    with pytest.raises(ValueError, match="holds vectors of native 'ViT-B-32/openai'"):
        copy_index(source, target, NAMES, silent)
    assert not points(target, NAMES[0])
    assert not points(target, space=OTHER)


def test_an_index_without_these_collections_is_told(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="has no collection move-images or move-captions"):
        copy_index(f"edge:{tmp_path}/nothing", f"edge:{tmp_path}/target", NAMES, silent)
    assert not (tmp_path / "target").exists()


def test_an_index_is_not_copied_to_itself(source: str) -> None:
    with pytest.raises(ValueError, match="cannot be copied to itself"):
        copy_index(source, source, NAMES, silent)


def test_points_that_the_engine_lost_or_changed_are_told(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CaptionIndex.write
    with monkeypatch.context() as patch:
        patch.setattr(CaptionIndex, "write", lambda self, rows: write(self, rows[1:]))
        with pytest.raises(RuntimeError, match="has 697 points, expected 700"):
            copy_index(source, f"edge:{tmp_path}/lost", NAMES[1:], silent)

    def damage(index: CaptionIndex, rows: list[Point]) -> None:
        write(index, [row._replace(payload=row.payload | {"caption": "?"}) for row in rows])

    monkeypatch.setattr(CaptionIndex, "write", damage)
    with pytest.raises(RuntimeError, match="another vector or payload"):
        copy_index(source, f"edge:{tmp_path}/changed", NAMES[1:], silent)


def test_the_sample_is_drawn_from_all_points(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SAMPLE", 50)
    assert copy_index(source, f"edge:{tmp_path}/target", NAMES[1:], silent)[NAMES[1]].checked == 50
    sample: Reservoir[int] = Reservoir(50)
    for number in range(N):
        sample.offer(number)
    assert len(set(sample.items)) == 50
    assert max(sample.items) >= 350 > min(sample.items)


def written_by_0_1_0(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(config: CollectionConfig) -> dict[str, object]:
        return {"schema": 2, **asdict(config.space), "quantization": None}

    with monkeypatch.context() as patch:
        patch.setattr(CollectionConfig, "record", record)
        CaptionIndex.open(url, SPACE, NAMES[1]).close()
    namespace = uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11")
    old = [
        Point(
            str(uuid.uuid5(namespace, json.dumps([SPACE.fingerprint, entry.id, entry.language]))),
            (vector / np.linalg.norm(vector)).tolist(),
            asdict(entry),
        )
        for entry, vector in zip(ENTRIES, VECTORS, strict=True)
    ]
    with CaptionIndex.open(url, SPACE, NAMES[1]) as index:
        index._backend.upsert(old[:300])
        index._backend.upsert(old[300:])


def test_points_of_0_1_0_are_copied_as_points_of_today(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, target = f"edge:{tmp_path}/old", f"edge:{tmp_path}/target"
    written_by_0_1_0(old, monkeypatch)
    copy_index(old, target, NAMES[1:], silent)
    assert are_same(points(source), points(target))
    again = config_at(target, NAMES[1])
    assert again
    assert again.schema == 3


def test_a_copy_to_a_collection_of_0_1_0_leaves_every_entry_there_once(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = f"edge:{tmp_path}/old"
    written_by_0_1_0(old, monkeypatch)
    with CaptionIndex.open(source, SPACE, NAMES[1]) as index:
        index.upsert(ENTRIES[:3], VECTORS[3:6])
    assert copy_index(source, old, NAMES[1:], silent)[NAMES[1]].written == 3
    assert are_same(points(source), points(old))
