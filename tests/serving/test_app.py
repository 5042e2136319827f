"""Promises of the HTTP app, on a real engine, native, packs and index in this process."""

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import load_file, save_file

from mla_ray.data.feature_store import encode_texts
from mla_ray.index.backend import CollectionConfig, Point
from mla_ray.index.collection import CaptionIndex, Entry
from mla_ray.index.edge import EdgeBackend
from mla_ray.index.ingest import space_of
from mla_ray.index.picture_store import PictureStore
from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.schemas import MAX_HITS, MAX_TEXT, MAX_TEXTS, TOKEN_VARIABLE
from mla_ray.serving.settings import Settings
from tests.support.natives import MakePack

NDJSON = {"Content-Type": "application/x-ndjson"}
PNG = {"Content-Type": "image/png"}


@dataclass
class Server:
    client: TestClient
    backend: LocalBackend
    settings: Settings

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(path, params=params)


Start = Callable[..., Any]


@pytest.fixture
def start(
    tmp_path: Path,
    native_folder: Path,
    make_pack: MakePack,
    pngs: list[bytes],
) -> Start:
    """Starts a server of a tiny native, with German and Hindi, and twelve images."""
    native = Native.load(str(native_folder))
    for language in ("de", "hi"):
        pack = make_pack(language)
        pack.card = pack.card.model_copy(update={"fingerprint": native.fingerprint})
        pack.save(tmp_path / "packs" / language)

    @contextmanager
    def started(**settings: Any) -> Iterator[Server]:
        given = Settings(
            native=str(native_folder),
            packs=str(tmp_path / "packs"),
            index=f"edge:{tmp_path / 'index'}",
            pictures=str(tmp_path / "pictures"),
            **{"scan_every_s": 0.1, "hosts": ["127.0.0.1", "testserver"], **settings},
        )
        backend = LocalBackend(given)
        try:
            with TestClient(create_app(backend, given)) as client:
                yield Server(client, backend, given)
        finally:
            backend.close()

    return started


@pytest.fixture
def server(start: Start, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    with start() as server:
        server.client.headers["Authorization"] = "Bearer s3cret"
        for number, png in enumerate(pngs):
            answer = server.client.put(f"/v1/images/set/{number:02}", content=png, headers=PNG)
            assert answer.status_code == 200
        yield server


def ingest(server: Server, *lines: dict[str, Any] | str) -> dict[str, Any]:
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    answer = server.client.post("/v1/captions", content=body.encode(), headers=NDJSON)
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def problem(answer: Any, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:mla-ray:problem:{kind}"
    assert body["status"] == status
    return str(body["detail"])


# --- search ------------------------------------------------------------------------------------


def test_a_text_finds_the_images_that_the_library_finds(server: Server) -> None:
    native = server.backend._text.native
    vector = encode_texts(native, ["a dog"])[0]
    expected = server.backend._index.collections["images"].search(vector, 5)

    found = server.get("/v1/search", q="a dog", language="en", k=5).json()

    assert [hit["image_id"] for hit in found["hits"]] == [hit.entry.image_id for hit in expected]
    assert found["hits"][0]["score"] == pytest.approx(expected[0].score, abs=1e-5)
    assert found["language"] == "en"
    assert found["detected"] is False


def test_pages_join_without_gap_or_overlap(server: Server) -> None:
    whole = server.get("/v1/search", q="Hund", language="de", k=12).json()
    assert whole["next_offset"] is None
    pages, offset = [], 0
    while offset is not None:
        page = server.get("/v1/search", q="Hund", language="de", k=5, offset=offset).json()
        pages += page["hits"]
        offset = page["next_offset"]
    assert pages == whole["hits"]
    assert len(pages) == 12


def test_every_offset_that_is_handed_out_is_taken(server: Server) -> None:
    dim = server.backend._text.native.dim
    vectors = np.random.default_rng(0).normal(size=(10_200, dim)).astype(np.float32)
    entries = [Entry(f"c{i}", "i", "de", f"c{i}", "many") for i in range(len(vectors))]
    server.backend._index.collections["captions"].upsert(entries, vectors)

    def page(offset: int, k: int) -> Any:
        found = server.get("/v1/search", q="x", language="de", find="captions", k=k, offset=offset)
        assert found.status_code == 200
        assert len(found.json()["hits"]) == k
        return found.json()["next_offset"]

    assert [page(9_900, 100), page(9_930, 70)] == [10_000, 10_000]  # the last that is taken
    assert [page(10_000, 50), page(9_950, 100), page(9_931, 70)] == [None] * 3
    problem(server.get("/v1/search", q="x", offset=10_001), 422, "invalid-request")


def test_no_hit_is_below_the_score_asked_for_and_pages_end_there(
    server: Server, pngs: list[bytes]
) -> None:
    def by_text(**params: Any) -> Any:
        return server.get("/v1/search", q="a dog", language="en", **params)

    def by_image(**params: Any) -> Any:
        path, params = "/v1/search/image", {"find": "images", **params}
        return server.client.post(path, params=params, content=pngs[4], headers=PNG)

    for search in (by_text, by_image):
        whole = search(k=12).json()["hits"]
        least = whole[6]["score"]  # as it is shown
        first = search(k=4, min_score=least).json()
        assert (first["hits"], first["next_offset"]) == (whole[:4], 4)
        last = search(k=4, offset=4, min_score=least).json()
        assert (last["hits"], last["next_offset"]) == (whole[4:7], None)
        exact = search(k=7, min_score=least).json()
        assert (exact["hits"], exact["next_offset"]) == (whole[:7], None)
        above = search(min_score=1).json()
        assert above["hits"] == [hit for hit in whole if hit["score"] == 1]
        for bad in ("1.01", "-1.01", "nan", "inf", "high", ""):
            problem(search(min_score=bad), 422, "invalid-request")


def test_captions_are_found_across_languages_and_filtered(server: Server) -> None:
    rows = [("de", "ein Hund"), ("hi", "एक कुत्ता"), ("en", "a dog"), ("de", "Katze")]
    written = ingest(
        server,
        *(
            {"image_id": "set/00", "language": language, "caption": caption, "source": source}
            for (language, caption), source in zip(rows, ["a", "b", "a", "b"], strict=True)
        ),
    )
    assert written == {"received": 4, "written": 4, "rejected": 0, "errors": []}

    def captions(**filters: str) -> list[str]:
        found = server.get("/v1/search", q="ein Hund", language="de", find="captions", **filters)
        return [hit["caption"] for hit in found.json()["hits"]]

    assert captions()[0] == "ein Hund"  # itself
    assert sorted(captions()) == sorted(caption for _, caption in rows)
    assert captions(in_language="hi") == ["एक कुत्ता"]
    assert set(captions(source="a")) == {"ein Hund", "a dog"}
    assert captions(in_language="de-AT", source="b") == ["Katze"]


def test_an_image_finds_itself_and_its_captions(server: Server, pngs: list[bytes]) -> None:
    def search(find: str) -> Any:
        params = {"find": find, "k": 3}
        return server.client.post("/v1/search/image", params=params, content=pngs[4], headers=PNG)

    hits = search("images").json()["hits"]
    assert hits[0]["image_id"] == "set/04"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    ingest(server, {"image_id": "set/04", "language": "de", "caption": "Katze"})
    answer = search("captions").json()
    assert [hit["caption"] for hit in answer["hits"]] == ["Katze"]
    assert answer["language"] is None


@pytest.mark.parametrize(("text", "language"), [("ein Hund im Schnee", "de"), ("कुत्ता", "hi")])
def test_the_language_is_detected_among_those_served(
    server: Server, text: str, language: str
) -> None:
    found = server.get("/v1/search", q=text).json()
    assert found["language"] == language
    assert found["detected"] is True


def test_a_language_without_a_pack_is_not_found(server: Server) -> None:
    detail = problem(server.get("/v1/search", q="pes", language="cs"), 404, "unknown-language")
    assert "de, en, hi" in detail
    body = {"inputs": [{"text": "pes", "language": "cs"}]}
    problem(server.client.post("/v1/embeddings/text", json=body), 404, "unknown-language")


# --- embeddings --------------------------------------------------------------------------------


def test_embeddings_of_mixed_languages_are_unit_vectors_in_order(server: Server) -> None:
    texts = [("a dog", "en"), ("ein Hund", "de"), ("एक कुत्ता", "hi"), ("cat", "en")]
    body = {"inputs": [{"text": text, "language": language} for text, language in texts]}
    answer = server.client.post("/v1/embeddings/text", json=body).json()
    found = np.array(answer["embeddings"], dtype=np.float32)

    library = server.backend._text.library
    for row, (text, language) in zip(found, texts, strict=True):
        pack = library.get(language)
        native = server.backend._text.native
        alone = pack.encode_text([text]).numpy()[0] if pack else encode_texts(native, [text])[0]
        np.testing.assert_allclose(row, alone / np.linalg.norm(alone), atol=1e-5)
    assert answer["dim"] == found.shape[1]
    assert answer["fingerprint"] == server.backend._text.native.fingerprint

    packed = server.client.post("/v1/embeddings/text", json=body | {"encoding": "base64"}).json()
    raw = base64.b64decode(packed["embeddings"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(found.shape), found)


def test_an_image_is_embedded(server: Server, pngs: list[bytes]) -> None:
    answer = server.client.post("/v1/embeddings/image", content=pngs[0], headers=PNG).json()
    expected = server.backend._image.encode([pngs[0]]).vectors
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)


# --- what a language does not know, and what has no answer --------------------------------------


def test_answers_tell_how_much_of_a_text_is_unknown(server: Server, pngs: list[bytes]) -> None:
    library = server.backend._text.library
    pack = library.get("de")
    assert pack is not None
    texts = ["ein Hund", "ein Hund 犬", "犬", "собака"]
    shares = pack.unknown_tokens(texts).tolist()
    assert shares[0] == 0 < shares[1] < 1 == shares[2]
    for text, share in zip(texts, shares, strict=True):
        found = server.get("/v1/search", q=text, language="de").json()
        assert found["unknown_tokens"] == pytest.approx(share)
    body = {"inputs": [{"text": text, "language": "de"} for text in texts] + [{"text": "a dog"}]}
    for encoding in ("float", "base64"):
        answer = server.client.post("/v1/embeddings/text", json=body | {"encoding": encoding})
        assert answer.json()["unknown_tokens"] == pytest.approx([*shares, 0])
    answer = server.client.post("/v1/embeddings/image", content=pngs[0], headers=PNG)
    assert answer.json()["unknown_tokens"] == [0]
    answer = server.client.post("/v1/search/image", content=pngs[0], headers=PNG)
    assert answer.json()["unknown_tokens"] == 0


def test_control_tokens_in_texts_are_text(server: Server) -> None:
    body = {
        "inputs": [
            {"text": text, "language": language}
            for language in ("de", "en")
            for text in ("ein", "ein <eos> Hund", "<pad>", "ein <eos> Katze")
        ]
    }
    rows = np.array(server.client.post("/v1/embeddings/text", json=body).json()["embeddings"])
    for language in (rows[:4], rows[4:]):
        # What stands behind it counts, so it has ended nothing.
        assert np.abs(language[1] - language[3]).max() > 1e-3
        assert np.abs(language[0] - language[1]).max() > 1e-3


@pytest.fixture
def ill(server: Server, make_pack: MakePack, tmp_path: Path) -> Server:
    """Beside German and Hindi: Swedish, whose "katt" is too much for a float32."""
    pack = make_pack("sv", texts=["en hund", "katt"])
    with torch.no_grad():
        pack.encoder.embedding.rows.weight[pack.tokenizer(["katt"])[0][-2]] = 3e38
    fingerprint = server.backend._text.native.fingerprint
    pack.card = pack.card.model_copy(update={"fingerprint": fingerprint})
    pack.save(tmp_path / "packs" / "sv")
    for _ in range(100):
        if server.get("/v1/search", q="en hund", language="sv").status_code == 200:
            return server
        threading.Event().wait(0.1)
    raise AssertionError("no Swedish within 10 s")


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


def test_an_ill_line_of_an_ingest_costs_itself_alone(ill: Server) -> None:
    languages = [("de", "ein Hund"), ("sv", "katt"), ("en", "a dog"), ("sv", "en hund")] * 3
    lines = [
        {"image_id": f"set/{number:02}", "language": language, "caption": caption}
        for number, (language, caption) in enumerate(languages)
    ]
    result = ingest(ill, *lines)
    assert (result["received"], result["written"], result["rejected"]) == (12, 9, 3)
    assert [error["line"] for error in result["errors"]] == [2, 6, 10]
    assert all("not finite" in error["error"] for error in result["errors"])
    counts = {row["language"]: row for row in ill.get("/v1/languages").json()["languages"]}
    assert [counts[tongue]["captions"] for tongue in ("de", "sv", "en")] == [3, 3, 3]


def test_a_pack_that_was_refused_is_told(ill: Server, tmp_path: Path) -> None:
    path = tmp_path / "packs" / "sv" / "weights.safetensors"
    weights = load_file(path)
    weights["acquirers.0.up.bias"][0] = float("nan")
    save_file(weights, path)
    document = json.loads((path.parent / "card.json").read_text())
    document["sha256"]["weights.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "card.json").write_text(json.dumps(document))
    for _ in range(100):
        broken = {row["name"]: row["error"] for row in ill.get("/v1/languages").json()["broken"]}
        if "sv" in broken:
            break
        threading.Event().wait(0.1)
    assert "acquirers.0.up.bias" in broken["sv"]
    assert broken["sv"].endswith("the version before it is served")
    assert ill.get("/v1/search", q="en hund", language="sv").status_code == 200


# --- collections -------------------------------------------------------------------------------


def test_a_bad_line_costs_itself_only_and_is_named(server: Server) -> None:
    good = {"image_id": "set/00", "language": "de", "caption": "Katze"}
    result = ingest(
        server,
        good,
        "",
        '{"image_id": ',
        good | {"language": "cs"},
        good | {"caption": " "},
        good | {"surprise": 1},
        {"image_id": "set/00"},
        json.dumps(good | {"caption": "x" * 70_000}),
        good | {"caption": "ein Hund"},
    )
    assert (result["received"], result["written"], result["rejected"]) == (8, 2, 6)
    errors = {error["line"]: error["error"] for error in result["errors"]}
    assert list(errors) == [3, 4, 5, 6, 7, 8]
    assert "JSON" in errors[3]
    assert "'cs'" in errors[4]
    assert errors[5].startswith("caption")
    assert errors[6].startswith("surprise")
    assert "longer than" in errors[8]


def test_ingesting_twice_changes_nothing(server: Server) -> None:
    lines = [
        {"image_id": f"set/{number:02}", "language": "de", "caption": f"Hund {number}"}
        for number in range(300)
    ]
    index = server.backend._index.collections["captions"]
    for _ in range(2):
        assert ingest(server, *lines)["written"] == 300
        assert index.count(language="de") == 300
    languages = {row["language"]: row for row in server.get("/v1/languages").json()["languages"]}
    assert languages["de"]["captions"] == 300
    assert languages["de"]["autonym"] == "Deutsch"
    assert languages["en"]["native"] is True


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


def png_of(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return buffer.getvalue()


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
    config = CollectionConfig(space_of(native), None, 2)  # as 0.1.0 made it
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


def test_packs_come_change_and_go_while_the_server_runs(
    server: Server, make_pack: MakePack, tmp_path: Path
) -> None:
    store = tmp_path / "packs"

    def wait_for(wanted: set[str]) -> None:
        deadline = threading.Event()
        for _ in range(50):
            if {
                row["language"] for row in server.get("/v1/languages").json()["languages"]
            } == wanted:
                return
            deadline.wait(0.1)
        raise AssertionError(f"not {wanted} within 5 s")

    pack = make_pack("cs", texts=["pes", "kočka"])
    fingerprint = server.backend._text.native.fingerprint
    pack.card = pack.card.model_copy(update={"fingerprint": fingerprint})
    pack.save(store / "cs")
    wait_for({"cs", "de", "en", "hi"})
    assert server.get("/v1/search", q="pes", language="cs").status_code == 200
    (store / "cs").rename(tmp_path / "elsewhere")
    wait_for({"de", "en", "hi"})
    problem(server.get("/v1/search", q="pes", language="cs"), 404, "unknown-language")


# --- limits and security -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"q": ""},
        {"q": "  "},
        {"q": "x" * (MAX_TEXT + 1)},
        {"q": "x", "k": MAX_HITS + 1},
        {"q": "x", "k": 0},
        {"q": "x", "offset": -1},
        {"q": "x", "find": "passwords"},
        {"q": "x", "language": "../de"},
        {"q": "x", "find": "images", "in_language": "de"},
        {"q": ["x", "y"]},
        {"q": "x", "k": [5, 5]},
    ],
)
def test_what_is_out_of_bounds_is_refused(server: Server, params: dict[str, Any]) -> None:
    problem(server.get("/v1/search", **params), 422, "invalid-request")


def test_a_parameter_that_nobody_knows_is_refused_by_name(server: Server) -> None:
    answer = server.get("/v1/search", q="x", min_scor=0.3)
    detail = problem(answer, 422, "invalid-request")
    assert detail.startswith("query/min_scor: ")
    known = "q, language, find, k, offset, in_language, source, min_score"
    assert known in detail
    assert answer.json()["errors"][0]["loc"] == ["query", "min_scor"]
    assert "there are none" in problem(
        server.client.post("/v1/captions?source=a", content=b"", headers=NDJSON),
        *(422, "invalid-request"),
    )
    assert server.get("/", q="x", like="y").status_code == 200  # the page's own address


def test_bodies_are_bounded(server: Server) -> None:
    post = server.client.post
    many = {"inputs": [{"text": "x"}] * (MAX_TEXTS + 1)}
    problem(post("/v1/embeddings/text", json=many), 422, "invalid-request")
    huge = b" " * (5 << 20)
    json_ = {"Content-Type": "application/json"}
    problem(post("/v1/embeddings/text", content=huge, headers=json_), 413, "too-large")

    def chunks() -> Iterator[bytes]:  # a length is not said beforehand
        for _ in range(9):
            yield b"\0" * (1 << 20)

    answer = post("/v1/search/image", content=chunks(), headers=PNG)
    problem(answer, 413, "too-large")


def test_images_are_judged_before_they_are_decoded(server: Server) -> None:
    flat = BytesIO()
    Image.new("1", (9000, 9000)).save(flat, "PNG")  # 81 million pixels in 10 kB
    for data, words in ((flat.getvalue(), "pixels"), (b"hello", "not an image")):
        answer = server.client.post("/v1/search/image", content=data, headers=PNG)
        assert words in problem(answer, 422, "bad-image")
    answer = server.client.post("/v1/search/image", content=b"<svg/>")
    problem(answer, 415, "unsupported-media-type")


def test_without_the_token_there_is_only_the_page_and_health(server: Server) -> None:
    del server.client.headers["Authorization"]
    for path in ("/v1/search?q=x", "/v1/languages", "/metrics", "/v1/images/a", "/openapi.json"):
        answer = server.get(path)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/page/app.js", "/healthz"):
        assert server.get(path).status_code == 200
    for wrong in ("Bearer s3cre", "Basic s3cret", "s3cret", "Bearer"):
        answer = server.client.get("/v1/languages", headers={"Authorization": wrong})
        problem(answer, 401, "unauthorized")


def test_without_a_token_only_loopback_is_served(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=TOKEN_VARIABLE):
        Settings(hosts=["*"]).token()
    assert Settings().token() is None


def test_a_page_elsewhere_cannot_reach_the_server_by_another_name(server: Server) -> None:
    answer = server.client.get("/v1/languages", headers={"Host": "evil.example"})
    problem(answer, 421, "wrong-host")


def test_a_client_has_a_rate(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    with start(rate="3/minute") as server:
        server.client.headers["Authorization"] = "Bearer t"
        answers = [server.get("/v1/languages") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        problem(answers[3], 429, "too-many-requests")
        assert int(answers[3].headers["retry-after"]) >= 1


def test_a_full_queue_answers_at_once_and_a_late_answer_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    with start(max_queue=1, timeout_s=0.5) as server, ThreadPoolExecutor(8) as pool:
        server.client.headers["Authorization"] = "Bearer t"
        assert server.get("/v1/search", q="Hund").status_code == 200
        gate = threading.Event()
        server.backend._torch_thread.submit(gate.wait)  # the encoder is busy
        asked = [pool.submit(server.get, "/v1/search", q="Hund") for _ in range(8)]
        answers = [future.result() for future in asked]
        gate.set()
        full = [answer for answer in answers if answer.status_code == 503]
        late = [answer for answer in answers if answer.status_code == 504]
        assert len(full) + len(late) == 8
        assert len(full) >= 5
        for answer in full:
            problem(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
        problem(late[0], 504, "timeout")
        assert server.get("/v1/search", q="Hund").status_code == 200


def test_metrics_count_requests_and_hold_nothing_that_users_wrote(server: Server) -> None:
    server.get("/v1/search", q="Geheimnis", language="de")
    server.get("/v1/search", q="Geheimnis", language="xx")
    server.get("/v1/Geheimnis")
    server.client.request("GEHEIMNIS", "/v1/search")
    text = server.get("/metrics").text
    assert "geheimnis" not in text.lower()
    line = (
        'mla_http_requests_total{method="GET",replica="local",route="/v1/search",status="200"} 1.0'
    )
    assert line in text
    assert 'mla_texts_encoded_total{language="de",replica="local"} 1.0' in text


def test_every_answer_carries_the_security_headers(server: Server) -> None:
    for path in ("/", "/page/app.js", "/v1/languages", "/nothing", "/v1/search"):
        headers = server.get(path).headers
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert headers["x-content-type-options"] == "nosniff"


def test_unknown_paths_and_methods_are_problems(server: Server) -> None:
    problem(server.get("/nothing"), 404, "not-found")
    problem(server.client.delete("/v1/search"), 405, "method-not-allowed")
    problem(server.get("/page/../app.py"), 404, "not-found")
    problem(server.get("/page/%2e%2e/app.py"), 404, "not-found")


def test_health_tells_which_part_is_ill(server: Server) -> None:
    assert server.get("/healthz").json() == {
        "status": "ok",
        "parts": {"text": "ok", "image": "ok", "index": "ok"},
    }
    server.backend._index.close()
    answer = server.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["parts"]["text"] == "ok"
    assert answer.json()["parts"]["index"] != "ok"


def test_openapi_describes_problems_examples_and_the_token(server: Server) -> None:
    schema = server.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/healthz",
        "/metrics",
        "/v1/captions",
        "/v1/embeddings/image",
        "/v1/embeddings/text",
        "/v1/images/{image_id}",
        "/v1/languages",
        "/v1/search",
        "/v1/search/image",
    }
    assert "Problem" in schema["components"]["schemas"]
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["description"]
            assert "application/problem+json" in operation["responses"]["422"]["content"]


def test_the_index_of_another_native_is_refused(
    tmp_path: Path, other_native: Native, start: Start
) -> None:
    with CaptionIndex.open(f"edge:{tmp_path / 'index'}", space_of(other_native), "images") as index:
        index.upsert([Entry("a", "a", "", "", "s")], np.ones((1, other_native.dim), np.float32))
    with pytest.raises(ValueError, match="other-clip"), start():
        pass


def test_pictures_are_found_where_the_index_command_keeps_them(
    server: Server, tmp_path: Path
) -> None:
    store = PictureStore(str(tmp_path / "pictures"))
    store.put("elsewhere/1", "table", Image.new("RGB", (3, 3)))
    assert server.get("/v1/images/elsewhere%2F1", source="table").status_code == 200
