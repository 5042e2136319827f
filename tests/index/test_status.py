"""Promises of mla_ray.index.status and `mla index --status`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mla_ray.cli import app
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.settings import IndexSettings
from mla_ray.index.status import status_of
from tests.support.qdrant import own_qdrant

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 4)
OTHER = VectorSpace("ViT-B-32/openai", "fedcba9876543210", 8)
ENTRIES = [
    Entry(f"c{i}", f"i{i}", ("de", "sw")[i % 2], f"caption {i}", "ab"[i % 2]) for i in range(5)
]


def fill(url: str, space: VectorSpace, n: int, settings: IndexSettings | None = None) -> None:
    vectors = np.ones((n, space.dim), np.float32)
    with CaptionIndex.open(url, space, settings=settings or IndexSettings()) as index:
        index.upsert(ENTRIES[:n], vectors)


def test_a_folder_tells_what_it_has(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    fill(url, SPACE, 5, IndexSettings(quantization="int8", on_disk_vectors=True))
    CaptionIndex.open(url, SPACE, "images").close()
    captions, images = status_of(url).collections
    assert captions.model_dump(exclude={"disk_bytes", "settings"}) == {
        "collection": "captions",
        "version": "captions-0123456789ab-v1",
        "native": "emoji-clip",
        "fingerprint": "0123456789abcdef",
        "dim": 4,
        "schema_number": 3,
        "hybrid": True,
        "points": 5,
        "languages": {"de": 3, "sw": 2},
        "sources": {"a": 3, "b": 2},
        "in_graph": 0,
        "vector_bytes": 80,
        "state": None,
        "optimizer": None,
        "replicas": [],
    }
    assert captions.settings.quantization == "int8"
    assert captions.settings.on_disk_vectors
    assert captions.disk_bytes
    assert (images.collection, images.points, images.languages) == ("images", 0, {})


def test_the_command_needs_no_table_to_tell_the_status(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    fill(url, SPACE, 5)
    shown = CliRunner().invoke(app, ["index", "--index", url, "--status"])
    assert shown.exit_code == 0, shown.output
    assert "captions (captions-0123456789ab-v1): 5 points" in shown.output
    assert "languages: de 3, sw 2" in shown.output
    as_json = CliRunner().invoke(app, ["index", "--index", url, "--status", "--json"])
    (captions,) = json.loads(as_json.output)["collections"]
    assert captions["sources"] == {"a": 3, "b": 2}
    refused = CliRunner().invoke(app, ["index", "--index", url])
    assert refused.exit_code == 2
    assert "--captions" in refused.output


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="does not exist"):
        status_of(f"edge:{tmp_path}/none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
def test_a_server_tells_its_natives_projects_and_shards(tmp_path: Path) -> None:
    with own_qdrant(tmp_path) as node:
        for url in node.urls.values():
            fill(url, SPACE, 5, IndexSettings(shard_number=2))
            fill(url, OTHER, 3)
            fill(f"{url}?prefix=shop", SPACE, 2)
            found = status_of(url)
            assert found.server
            assert [(each.collection, each.native, each.points) for each in found.collections] == [
                ("captions", "emoji-clip", 5),
                ("captions", "ViT-B-32/openai", 3),
                ("shop.captions", "emoji-clip", 2),
            ]
            ours = found.collections[0]
            assert (ours.state, ours.optimizer) == ("green", "ok")
            assert [(copy.shard, copy.state) for copy in ours.replicas] == [
                (0, "Active"),
                (1, "Active"),
            ]
            assert ours.settings.shard_number == 2
            assert "0 on " in found.text()
            (shop,) = status_of(f"{url}?prefix=shop").collections
            assert shop.sources == {"a": 1, "b": 1}
