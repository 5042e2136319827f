"""Replicas follow the load, and nodes the replicas: without room for one a node comes."""

from pathlib import Path

import pytest

from tests.cluster import scenes
from tests.cluster.application import Application
from tests.cluster.nodes import nodes, wait_for
from tests.support.load import Load

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


def test_encoders_follow_the_load_and_no_search_fails(args: dict[str, str]) -> None:
    """The tiny native is fast, so the wait that it may cause is short as well."""
    with nodes(cpus=6, serves=True) as cluster:
        application = Application(cluster, args | {"rate": "9999/second"}, {"num_cpus": 1})
        policy = application.scaling["policy"] | {"policy_kwargs": {"max_wait_s": 0.002}}
        application.deploy_autoscaled(policy=policy, max_replicas=2, downscale_delay_s=5)
        wait_for("served", application.running)
        assert len(application.encoders()) == 1
        with Load(application.url, ["en"], threads=16, pause_s=0) as load:
            wait_for("a second encoder", lambda: len(application.encoders()) == 2)
            second = max(application.encoders(), key=lambda each: each.log.stat().st_mtime)
            calls = second.calls()
            wait_for("it takes batches", lambda: second.calls() > calls)
        wait_for("one again", lambda: len(application.encoders()) == 1)
        assert len(load.answers) > 100
        assert load.failed == []
