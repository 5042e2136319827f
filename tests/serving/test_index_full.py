"""Promise for the time in which the disk of the index's Qdrant server is full."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.app_server import NDJSON, PNG, Server, Start, ingest, png_of, problem
from tests.support.disks import MB, fill
from tests.support.qdrant import OwnQdrant

QUERY = {"q": "ein Hund", "language": "de", "find": "captions"}


@pytest.fixture(params=["http", "grpc"])
def app(request: pytest.FixtureRequest, qdrant: OwnQdrant, start: Start) -> Iterator[Server]:
    with start(index=qdrant.urls[request.param], hosts=["127.0.0.1"]) as server:
        server.client.base_url = "http://127.0.0.1"
        yield server


@pytest.mark.server
def test_writes_meet_507_while_the_disk_is_full_and_searches_go_on(app: Server, disk: Path) -> None:
    line = {"image_id": "old", "language": "de", "caption": "ein Hund"}
    new = {"image_id": "new", "language": "de", "caption": "eine Katze"}
    assert ingest(app, line)["written"] == 1
    before = app.get("/v1/search", **QUERY).json()
    assert [hit["image_id"] for hit in before["hits"]] == ["old"]
    taken = fill(disk, leave=30 * MB)
    answers = [
        app.client.post("/v1/captions", content=json.dumps(new), headers=NDJSON),
        app.client.put("/v1/images/new", content=png_of("red"), headers=PNG),
        app.client.delete("/v1/captions", params={"image_id": "old"}),
    ]
    for answer in answers:
        detail = problem(answer, 507, "index-not-writable")
        assert "free some space" in detail
        assert "127.0.0.1" not in detail
    assert app.get("/v1/search", **QUERY).json() == before
    assert app.get("/healthz").status_code == 200
    taken.unlink()
    assert ingest(app, new)["written"] == 1
    assert app.client.put("/v1/images/new", content=png_of("red"), headers=PNG).status_code == 200
