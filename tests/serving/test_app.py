"""Promises of the HTTP app, on a real engine, native, packs and index in this process."""

from pathlib import Path

import numpy as np
import pytest

from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import space_of
from mla_ray.model.native import Native
from tests.serving.app_server import Server, Start, problem


def test_unknown_paths_and_methods_are_problems(server: Server) -> None:
    problem(server.get("/nothing"), 404, "not-found")
    problem(server.client.delete("/v1/search"), 405, "method-not-allowed")
    problem(server.get("/page/../app.py"), 404, "not-found")
    problem(server.get("/page/%2e%2e/app.py"), 404, "not-found")


def test_head_is_answered_as_get_without_a_body(server: Server) -> None:
    for path in ("/", "/page/app.js", "/v1/languages", "/v1/images/set%2F00", "/healthz", "/none"):
        head, got = server.client.head(path), server.get(path)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        for name in ("content-type", "content-length"):
            assert head.headers[name] == got.headers[name], path
    assert server.client.head("/v1/search/image").status_code == 405


def test_the_index_of_another_native_is_refused(
    tmp_path: Path, other_native: Native, start: Start
) -> None:
    with CaptionIndex.open(f"edge:{tmp_path / 'index'}", space_of(other_native), "images") as index:
        index.upsert([Entry("a", "a", "", "", "s")], np.ones((1, other_native.dim), np.float32))
    with pytest.raises(ValueError, match="other-clip"), start():
        pass
