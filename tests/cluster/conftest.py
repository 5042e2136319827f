"""What every test of a cluster is given: nodes, and a language to acquire on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.drivers import CONFIG, Start, starting
from tests.cluster.nodes import Nodes, nodes


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    """A cluster of a head only, without what a Train worker asks for."""
    with nodes() as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Nodes) -> Iterator[Nodes]:
    """The head, and whichever nodes a test adds: they are gone after it."""
    yield head
    for node in head.nodes[1:]:
        head.remove(node)


@pytest.fixture(scope="session")
def job(
    native_folder: Path,
    corpus: dict[str, list[str]],
    pngs: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What drivers are told, but for the run: German, on one worker of a node with a `trainer`."""
    folder = tmp_path_factory.mktemp("inputs")
    english = corpus["en"] + [f"{text} again" for text in corpus["en"]]
    german = corpus["de"] + [f"wieder {text}" for text in corpus["de"]]
    pairs = pa.table({"source": english, "target": german, "language": ["de"] * len(german)})
    captions = pa.table(
        {
            "image_id": [f"image {number}" for number in range(12)],
            "image": pa.array(pngs, pa.large_binary()),
            "language": ["de"] * len(german),
            "caption": german,
            "split": ["train"] * len(german),
        }
    )
    pq.write_table(pairs, folder / "pairs.parquet")
    pq.write_table(captions, folder / "captions.parquet")
    return {
        "native": str(native_folder),
        "language": "de",
        "pairs": str(folder / "pairs.parquet"),
        "captions": str(folder / "captions.parquet"),
        "config": CONFIG.model_dump(),
        "store": str(folder / "features"),
        "workers": {"cpus": 1, "resources": {"trainer": 1}},
        "resume": False,
    }


@pytest.fixture
def start(
    head: Nodes, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    with starting(head, job, tmp_path_factory) as begin:
        yield begin
