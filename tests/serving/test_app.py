"""Promises of the HTTP app, on a real engine, native, packs and index in this process."""

from pathlib import Path

import numpy as np
import pytest

from mla_ray.index.collection import CaptionIndex, Entry
from mla_ray.index.ingest import space_of
from mla_ray.model.native import Native
from tests.serving.app_server import Server, Start, problem


def test_unknown_paths_and_methods_are_problems(server: Server) -> None:
    problem(server.get("/nothing"), 404, "not-found")
    problem(server.client.delete("/v1/search"), 405, "method-not-allowed")
    problem(server.get("/page/../app.py"), 404, "not-found")
    problem(server.get("/page/%2e%2e/app.py"), 404, "not-found")


def test_the_index_of_another_native_is_refused(
    tmp_path: Path, other_native: Native, start: Start
) -> None:
    with CaptionIndex.open(f"edge:{tmp_path / 'index'}", space_of(other_native), "images") as index:
        index.upsert([Entry("a", "a", "", "", "s")], np.ones((1, other_native.dim), np.float32))
    with pytest.raises(ValueError, match="other-clip"), start():
        pass
