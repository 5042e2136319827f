"""Promises of what the endpoints do: one row costs itself alone, images belong to their source."""

import hashlib
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mla_ray.index.backend import CollectionConfig, Point
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import space_of
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.serving.schemas import TOKEN_VARIABLE
from tests.serving.app_server import PNG, Server, Start, ingest, png_of, problem


def test_an_ill_language_costs_nobody_else_a_search(ill: Server) -> None:
    asked = [
        {"q": q, "language": language, "find": "images"}
        for q, language in (("katt", "sv"), ("ein Hund", "de"), ("en hund", "sv"), ("a dog", "en"))
    ] * 12
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda params: ill.get("/v1/search", **params), asked))
    for params, answer in zip(asked, answers, strict=True):
        if params["q"] == "katt":
            assert "'sv'" in problem(answer, 500, "not-encoded")
            assert "katt" not in answer.text
        else:
            assert answer.status_code == 200
            assert len(answer.json()["hits"]) == 10
            assert "null" not in str([hit["score"] for hit in answer.json()["hits"]])


def test_embeddings_that_cannot_be_are_named_by_row(ill: Server) -> None:
    post = ill.client.post
    good = [{"text": "ein Hund", "language": "de"}, {"text": "en hund", "language": "sv"}]
    bad = {"text": "katt", "language": "sv"}
    answer = post("/v1/embeddings/text", json={"inputs": [good[0], bad, good[1], bad]})
    problem(answer, 500, "not-encoded")
    assert [error["loc"] for error in answer.json()["errors"]] == [["inputs", "1"], ["inputs", "3"]]
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"inputs": good}, {"inputs": [bad]}] * 8
        answers = list(pool.map(lambda body: post("/v1/embeddings/text", json=body), bodies))
    assert [answer.status_code for answer in answers] == [200, 500] * 8
    for answer in answers[::2]:
        assert "null" not in answer.text
        np.testing.assert_allclose(
            np.linalg.norm(answer.json()["embeddings"], axis=1), [1, 1], atol=1e-5
        )


def test_a_picture_is_kept_small_and_served(server: Server) -> None:
    wide = BytesIO()
    Image.new("RGB", (800, 400), "green").save(wide, "PNG")
    put = server.client.put(
        "/v1/images/a%2Fb%20c?source=my%20set", content=wide.getvalue(), headers=PNG
    ).json()
    assert put == {"image_id": "a/b c", "image_url": "/v1/images/a%2Fb%20c?source=my%20set"}
    answer = server.client.get(put["image_url"])
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(BytesIO(answer.content)).size == (256, 128)
    problem(server.client.get("/v1/images/none"), 404, "unknown-image")


def colour_of(answer: Any) -> str:
    """Of a picture that is served: the name of what it was drawn in."""
    assert answer.status_code == 200, answer.text
    pixel = Image.open(BytesIO(answer.content)).convert("RGB").getpixel((9, 9))
    near = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0)}
    (name,) = [n for n, c in near.items() if np.abs(np.subtract(pixel, c)).max() < 25]  # type: ignore[arg-type]
    return name


def test_two_sources_with_one_image_id_keep_images_pictures_and_captions(server: Server) -> None:
    for source in ("red", "blue"):
        put = server.client.put(
            f"/v1/images/1?source={source}", content=png_of(source), headers=PNG
        )
        assert put.json()["image_url"] == f"/v1/images/1?source={source}"
        row = {"image_id": "1", "language": "de", "caption": "Katze", "source": source}
        assert ingest(server, row)["written"] == 1
    for find in ("images", "captions"):
        for source in ("red", "blue"):
            hits = server.get("/v1/search", q="Katze", find=find, source=source).json()["hits"]
            assert [(hit["image_id"], hit["source"]) for hit in hits] == [("1", source)]
            assert colour_of(server.client.get(hits[0]["image_url"])) == source
    refused = problem(server.get("/v1/images/1"), 422, "invalid-request")
    assert "blue, red" in refused
    problem(server.get("/v1/images/1", source="green"), 404, "unknown-image")


def test_an_image_id_is_enough_where_one_source_has_it(server: Server) -> None:
    """Addresses of 0.1.0 name no source; and captions may come from elsewhere than the image."""
    server.client.put("/v1/images/1?source=photos", content=png_of("red"), headers=PNG)
    assert colour_of(server.get("/v1/images/1")) == "red"
    row = {"image_id": "1", "language": "de", "caption": "Katze", "source": "translators"}
    ingest(server, row)
    (hit,) = server.get("/v1/search", q="Katze", find="captions", source="translators").json()[
        "hits"
    ]
    assert colour_of(server.client.get(hit["image_url"])) == "red"
    server.client.put("/v1/images/1?source=drawings", content=png_of("blue"), headers=PNG)
    problem(server.client.get(hit["image_url"]), 404, "unknown-image")  # it may be either


def test_pictures_of_0_1_0_are_found_by_the_source_that_they_are_of(
    server: Server, tmp_path: Path
) -> None:
    index = server.backend._index.collections["images"]
    unit = np.ones((1, index.space.dim), np.float32)
    name = hashlib.sha256(b"1").hexdigest()
    folder = tmp_path / "pictures" / name[:2]
    folder.mkdir(parents=True, exist_ok=True)
    Image.open(BytesIO(png_of("lime"))).save(folder / f"{name}.webp")
    index.upsert([Entry("1", "1", "", "", "old")], unit)
    for params in ({}, {"source": "old"}):
        assert colour_of(server.get("/v1/images/1", **params)) == "lime"
    # Another source's image of that id is without a picture; whose the old one is nobody knows.
    index.upsert([Entry("1", "1", "", "", "new")], unit)
    for source in ("old", "new"):
        problem(server.get("/v1/images/1", source=source), 404, "unknown-image")
    server.client.put("/v1/images/1?source=new", content=png_of("blue"), headers=PNG)
    assert colour_of(server.get("/v1/images/1", source="new")) == "blue"


def test_an_index_and_pictures_of_0_1_0_stay_together_when_another_source_comes(
    start: Start, native_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    native = Native.load(str(native_folder))
    config = CollectionConfig(space_of(native), schema=2)  # as 0.1.0 made it
    backend = EdgeBackend.open(tmp_path / "index" / "images", config, create=True)
    name = json.dumps([native.fingerprint, "1", ""])
    id_ = str(uuid.uuid5(uuid.UUID("f1bb0d4e-8d8a-5a5c-9d56-0c5c0a8e6d11"), name))
    payload = {"id": "1", "image_id": "1", "language": "", "caption": "", "source": "old"}
    backend.upsert([Point(id_, [1.0] * native.dim, payload)])
    backend.close()
    hashed = hashlib.sha256(b"1").hexdigest()
    (tmp_path / "pictures" / hashed[:2]).mkdir(parents=True)
    Image.open(BytesIO(png_of("lime"))).save(tmp_path / "pictures" / hashed[:2] / f"{hashed}.webp")
    with start() as server:
        server.client.headers["Authorization"] = "Bearer t"
        index = server.backend._index.collections["images"]
        index.upsert([Entry("1", "1", "", "", "new")], np.ones((1, native.dim), np.float32))
        hits = server.get("/v1/search", q="a dog", language="en").json()["hits"]
        shown = {hit["source"]: server.client.get(hit["image_url"]) for hit in hits}
        assert colour_of(shown["old"]) == "lime"
        problem(shown["new"], 404, "unknown-image")


def test_pictures_are_found_where_the_index_command_keeps_them(
    server: Server, tmp_path: Path
) -> None:
    store = PictureStore(str(tmp_path / "pictures"))
    store.put("elsewhere/1", "table", Image.new("RGB", (3, 3)))
    assert server.get("/v1/images/elsewhere%2F1", source="table").status_code == 200
