"""Nodes follow replicas: one that finds no room brings a node, and an idle node goes."""

from pathlib import Path

import httpx2
import pytest

from mla_ray.model.native import Native
from tests.cluster.application import Application, Replica
from tests.cluster.nodes import nodes, wait_for
from tests.support.load import Load
from tests.support.natives import MakePack

pytestmark = pytest.mark.cluster


@pytest.fixture
def args(tmp_path: Path, native_folder: Path, make_pack: MakePack) -> dict[str, str]:
    """Settings of a tiny application: English and German, all folders of its own."""
    pack = make_pack("de")
    fingerprint = Native.load(str(native_folder)).fingerprint
    pack.card = pack.card.model_copy(update={"fingerprint": fingerprint})
    pack.save(tmp_path / "packs" / "de")
    return {
        "native": str(native_folder),
        "packs": str(tmp_path / "packs"),
        "index": f"edge:{tmp_path / 'index'}",
        "pictures": str(tmp_path / "pictures"),
    }


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
    pngs: list[bytes],
) -> None:
    """`stages` are numbers of text encoders, each with the number of nodes that come of it."""
    with nodes(cpus=3, grows=node, serves=True) as cluster:
        application = Application(cluster, args, encoder)

        def scale(encoders: int, count: int) -> list[Replica]:
            application.deploy(encoders)
            wait_for(f"{encoders} encoders", application.settled)
            wait_for(f"{count} nodes", lambda: len(cluster.alive()) == count)
            return application.encoders()

        scale(*stages[0])
        image = httpx2.put(
            f"{application.url}/v1/images/one",
            content=pngs[0],
            headers={"Content-Type": "image/png"},
            timeout=60,
        )
        assert image.status_code == 200, image.text
        with Load(application.url, ["en", "de"]) as load:
            for encoders, count in stages[1:]:
                replicas = scale(encoders, count)
                assert {each.node for each in replicas} <= cluster.alive()
                for each in replicas:
                    before = each.calls()
                    wait_for("it answers", lambda each=each, n=before: each.calls() > n)
        assert len(load.answers) > 100
        assert load.failed == []
