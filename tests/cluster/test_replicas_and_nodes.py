"""Nodes follow replicas: one that finds no room brings a node, and an idle node goes."""

from pathlib import Path

import pytest

from tests.cluster import scenes

pytestmark = pytest.mark.cluster


@pytest.fixture
def args(tmp_path: Path, native_folder: Path) -> dict[str, str]:
    """Settings of a tiny application for English, all folders of its own."""
    folders = {name: str(tmp_path / name) for name in ("packs", "pictures")}
    (tmp_path / "packs").mkdir()
    return {"native": str(native_folder), "index": f"edge:{tmp_path / 'index'}"} | folders


@pytest.mark.parametrize(
    ("node", "encoder", "stages"),
    [
        pytest.param({"CPU": 1}, {"num_cpus": 1}, [(1, 1), (2, 2), (1, 1)], id="cores"),
        # The only GPUs are Ray's resources. Four encoders share one, as docs/serving.md says.
        pytest.param(
            {"CPU": 8, "GPU": 1}, {"num_gpus": 0.25}, [(1, 2), (4, 2), (5, 3), (1, 2)], id="GPUs"
        ),
    ],
)
def test_nodes_follow_the_replicas_and_no_search_fails(
    node: dict[str, float],
    encoder: dict[str, float],
    stages: list[tuple[int, int]],
    args: dict[str, str],
) -> None:
    found = scenes.encoders(args, node, encoder, stages)
    assert found["searches"] > 100
    assert found["failed"] == []
