"""A cluster grows by the nodes that a training asks for, and shrinks when it is over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.drivers import starting
from tests.cluster.nodes import Nodes, nodes, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture
def growing() -> Iterator[Nodes]:
    with nodes(grows={"CPU": 1, "trainer": 1}) as cluster:
        yield cluster


def test_nodes_come_for_a_training_and_go_after_it(
    growing: Nodes, job: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(growing.alive()) == 1
    with starting(growing, job, tmp_path_factory) as start:
        workers = {"count": 2, "cpus": 1, "resources": {"trainer": 1}}
        driver = start(tmp_path / "run", workers=workers)
        driver.until("two more nodes", lambda: len(growing.alive()) == 3)
        driver.finish()
    assert (driver.run / "packs" / "le" / "de" / "weights.safetensors").exists()
    wait_for("the idle nodes go", lambda: len(growing.alive()) == 1)
