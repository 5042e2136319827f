"""Promises of mla_ray.index.settings: what a collection is created with, and that it keeps it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.server import connect
from mla_ray.index.server_settings import settings_of
from mla_ray.index.settings import IndexSettings
from mla_ray.pipeline.plan import Plan
from mla_ray.runtime.settings_file import load_settings

SPACE = VectorSpace("emoji-clip", "5e771265e771", 4)
VECTORS = np.eye(4, dtype=np.float32)
ENTRIES = [Entry(f"c{i}", f"i{i}", "de", f"caption {i}", "s") for i in range(4)]
FOLDER: dict[str, Any] = {
    "quantization": "int8",
    "on_disk_vectors": True,
    "on_disk_payload": False,
    "hnsw_m": 8,
    "hnsw_ef_construct": 64,
}
SERVER: dict[str, Any] = {
    "shard_number": 3,
    "replication_factor": 2,
    "write_consistency_factor": 2,
}
SERVERS = {"http": "MLA_TEST_QDRANT_URL", "grpc": "MLA_TEST_QDRANT_GRPC_URL"}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server's URL. Collections of SPACE on it are deleted afterwards."""
    url = os.environ.get(SERVERS[request.param])
    if not url:
        pytest.skip(f"{SERVERS[request.param]} is not set")
    yield url
    client = connect(url)
    for collection in client.get_collections().collections:
        if SPACE.fingerprint in collection.name:
            client.delete_collection(collection.name)
    client.close()


def test_a_folder_is_made_with_its_settings_and_keeps_them(tmp_path: Path) -> None:
    settings = IndexSettings(**FOLDER)
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE, settings=settings) as index:
        index.upsert(ENTRIES, VECTORS)
        with index.rebuild() as fresh:
            fresh.upsert(ENTRIES, VECTORS)
        assert [hit.entry for hit in index.search(VECTORS[1], 1)] == ENTRIES[1:2]
    (config,) = tmp_path.glob("captions/*-v2/edge_config.json")
    stored = json.loads(config.read_text())
    vectors = stored["vectors"]["joint"]
    assert (vectors["on_disk"], stored["on_disk_payload"]) == (True, False)
    assert (vectors["hnsw_config"]["m"], vectors["hnsw_config"]["ef_construct"]) == (8, 64)
    CaptionIndex.open(f"edge:{tmp_path}", SPACE).close()
    CaptionIndex.open(f"edge:{tmp_path}", SPACE, settings=settings).close()


def test_other_settings_of_a_folder_are_refused_by_key_until_it_is_rebuilt(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    with CaptionIndex.open(url, SPACE) as index:
        index.upsert(ENTRIES, VECTORS)
    CaptionIndex.open(url, SPACE, settings=IndexSettings(hnsw_m=16)).close()  # the default
    other = IndexSettings(hnsw_m=32, on_disk_vectors=True, on_disk_payload=True)
    with pytest.raises(ValueError, match=r"hnsw_m 16, not 32.*rebuild") as refusal:
        CaptionIndex.open(url, SPACE, settings=other)
    assert "on_disk_vectors false, not true" in str(refusal.value)
    assert "payload" not in str(refusal.value)
    with CaptionIndex.open(url, SPACE) as index, index.rebuild(other) as fresh:
        fresh.upsert(ENTRIES, VECTORS)
    with CaptionIndex.open(url, SPACE, settings=other) as index:
        assert index.count() == 4


@pytest.mark.parametrize("url", ["edge:{}", ":memory:"])
@pytest.mark.parametrize("key", SERVER)
def test_what_only_a_server_has_is_refused_elsewhere(tmp_path: Path, url: str, key: str) -> None:
    settings = IndexSettings(**{key: SERVER[key]})
    with pytest.raises(ValueError, match=rf"has no {key}: .*use a Qdrant server"):
        CaptionIndex.open(url.format(tmp_path), SPACE, settings=settings)
    assert list(tmp_path.iterdir()) == []
    with CaptionIndex.open(f"edge:{tmp_path}", SPACE) as index:  # and on the way of a rebuild
        with pytest.raises(ValueError, match=f"has no {key}"), index.rebuild(settings):
            pass
        assert index.count() == 0


@pytest.mark.server
def test_a_server_makes_a_collection_with_its_settings_and_keeps_them(server: str) -> None:
    settings = IndexSettings(**FOLDER, **SERVER)
    with CaptionIndex.open(server, SPACE, settings=settings) as index:
        index.upsert(ENTRIES, VECTORS)
        with index.rebuild() as fresh:
            fresh.upsert(ENTRIES, VECTORS)
    client = connect(server)
    info = client.get_collection(f"captions-{SPACE.fingerprint}-v2")
    assert settings_of(info.config, layout=None) == settings
    client.close()
    CaptionIndex.open(server, SPACE).close()
    CaptionIndex.open(server, SPACE, settings=settings).close()
    with pytest.raises(ValueError, match="replication_factor 2, not 1, and keeps"):
        CaptionIndex.open(server, SPACE, settings=IndexSettings(replication_factor=1, hnsw_m=8))


@pytest.mark.server
def test_a_rebuild_changes_the_settings_that_it_names(server: str) -> None:
    with CaptionIndex.open(server, SPACE, settings=IndexSettings(hnsw_m=8)) as index:
        with index.rebuild(IndexSettings(on_disk_vectors=True)) as fresh:
            fresh.upsert(ENTRIES, VECTORS)
        assert index.count() == 4
    both = IndexSettings(hnsw_m=8, on_disk_vectors=True)
    CaptionIndex.open(server, SPACE, settings=both).close()


@pytest.mark.server
def test_projects_on_one_server_are_apart(server: str) -> None:
    with (
        CaptionIndex.open(f"{server}/?prefix=shop", SPACE) as shop,
        CaptionIndex.open(f"{server}?prefix=museum", SPACE) as museum,
        CaptionIndex.open(server, SPACE) as none,
    ):
        shop.upsert(ENTRIES, VECTORS)
        museum.upsert(ENTRIES[:1], VECTORS[:1])
        with shop.rebuild() as fresh:
            fresh.upsert(ENTRIES[:3], VECTORS[:3])
        assert (shop.count(), museum.count(), none.count()) == (3, 1, 0)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?prefix=", "prefix '' is not"),
        ("?prefix=a.b", "prefix 'a.b' is not"),
        ("?prefix=A", "prefix 'A' is not"),
        ("?prefix=a&prefix=b", "only .prefix=NAME"),
        ("?timeout=3", "only .prefix=NAME"),
        ("#prefix", "only .prefix=NAME"),
    ],
)
def test_what_else_follows_an_address_is_refused(query: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CaptionIndex.open(f"http://127.0.0.1:1/{query}", SPACE)


def test_a_folder_has_no_prefix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder has no prefix"):
        CaptionIndex.open(f"edge:{tmp_path}?prefix=shop", SPACE)


def test_a_file_of_settings_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "index.yaml"
    file.write_text("replication_factor: 2\non_disk_vectors: true\n")
    assert load_settings(file, IndexSettings).given() == {
        "replication_factor": 2,
        "on_disk_vectors": True,
    }
    file.write_text("replication: 2\nhnsw_m: 1\n")
    with pytest.raises(ValueError, match="did you mean replication_factor") as refusal:
        load_settings(file, IndexSettings)
    assert "hnsw_m: Input should be greater than or equal to 4, found 1" in str(refusal.value)


def test_a_plan_has_the_settings_as_a_section() -> None:
    plan = {"languages": ["de"], "pairs": ["p.tsv"], "index_settings": {"shard_number": 6}}
    assert Plan.model_validate(plan).index_settings.shard_number == 6
    with pytest.raises(ValueError, match="index_settings"):
        Plan.model_validate(plan | {"index_settings": {"shards": 6}})
