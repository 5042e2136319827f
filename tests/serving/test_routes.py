"""Promises of the endpoints over HTTP: search, embeddings, parameters, health."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mla_ray.index.entry import Entry
from mla_ray.model.native import Native
from mla_ray.serving.schemas import MAX_HITS, MAX_TEXT
from tests.serving.app_server import NDJSON, PNG, Server, ingest, problem
from tests.serving.expected import image_vector, nearest, text_vector
from tests.support.natives import MakePack


@pytest.mark.parametrize(
    ("language", "text"), [("en", "a dog"), ("de", "ein Hund"), ("hi", "लाल छाता"), ("de", "Katze")]
)
def test_a_text_finds_the_images_of_the_highest_cosines(
    server: Server,
    native: Native,
    make_pack: MakePack,
    pngs: list[bytes],
    language: str,
    text: str,
) -> None:
    pack = None if language == "en" else make_pack(language)
    images = [image_vector(native, png) for png in pngs]
    expected = nearest(text_vector(native, pack, text), images, 5)

    answer = server.get("/v1/search", q=text, language=language, k=5).json()

    assert [hit["image_id"] for hit in answer["hits"]] == [f"set/{n:02}" for n, _ in expected]
    cosines = [cosine for _, cosine in expected]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(cosines, abs=1e-5)
    assert answer["language"] == language
    assert answer["detected"] is False


def test_an_image_finds_the_captions_of_the_highest_cosines(
    server: Server,
    native: Native,
    make_pack: MakePack,
    corpus: dict[str, list[str]],
    pngs: list[bytes],
) -> None:
    captions = [(language, text) for language, texts in corpus.items() for text in texts]
    rows = [{"image_id": "x", "language": tag, "caption": text} for tag, text in captions]
    assert ingest(server, *rows)["written"] == len(captions)
    packs = {"en": None, "de": make_pack("de"), "hi": make_pack("hi")}
    vectors = [text_vector(native, packs[language], text) for language, text in captions]
    expected = nearest(image_vector(native, pngs[3]), vectors, 7)

    answer = server.client.post("/v1/search/image?k=7", content=pngs[3], headers=PNG).json()

    hits = [(hit["language"], hit["caption"]) for hit in answer["hits"]]
    assert hits == [captions[place] for place, _ in expected]
    cosines = [cosine for _, cosine in expected]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(cosines, abs=1e-5)


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
    assert (written["received"], written["written"], written["rejected"]) == (4, 4, 0)

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


def test_embeddings_of_mixed_languages_are_unit_vectors_in_order(
    server: Server, native: Native, native_folder: Path, make_pack: MakePack
) -> None:
    texts = [("a dog", "en"), ("ein Hund", "de"), ("एक कुत्ता", "hi"), ("cat", "en")]
    body = {"inputs": [{"text": text, "language": language} for text, language in texts]}
    answer = server.client.post("/v1/embeddings/text", json=body).json()
    rows = np.array(answer["embeddings"], dtype=np.float32)

    packs = {"en": None, "de": make_pack("de"), "hi": make_pack("hi")}
    expected = [text_vector(native, packs[language], text) for text, language in texts]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert answer["dim"] == rows.shape[1] == 32
    assert answer["fingerprint"] == Native.load(str(native_folder)).fingerprint

    packed = server.client.post("/v1/embeddings/text", json=body | {"encoding": "base64"}).json()
    raw = base64.b64decode(packed["embeddings"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(rows.shape), rows)


@pytest.mark.parametrize("blank", ["\u200b", " \u00ad\u2060", "\ufeff", "\u3164", "\u200e\u200f"])
def test_a_text_that_shows_nothing_is_refused(server: Server, blank: str) -> None:
    for language in ("auto", "de", "en"):
        answer = server.get("/v1/search", q=blank, language=language)
        assert "q: is empty" in problem(answer, 422, "invalid-request")
    body = {"inputs": [{"text": "Hund", "language": "de"}, {"text": blank, "language": "de"}]}
    answer = server.client.post("/v1/embeddings/text", json=body)
    assert "inputs/1/text: is empty" in problem(answer, 422, "invalid-request")
    result = ingest(server, {"image_id": "a", "language": "de", "caption": blank})
    assert result["errors"][0]["error"].startswith("caption: is empty")


def test_no_texts_have_no_vectors(server: Server) -> None:
    body = {"inputs": [], "encoding": "base64"}
    answer = server.client.post("/v1/embeddings/text", json=body).json()
    assert (answer["dim"], answer["embeddings"], answer["unknown_tokens"]) == (32, "", [])
    answer = server.client.post("/v1/embeddings/text", json={"inputs": []}).json()
    assert answer["embeddings"] == []


def test_an_image_is_embedded(server: Server, native: Native, pngs: list[bytes]) -> None:
    answer = server.client.post("/v1/embeddings/image", content=pngs[0], headers=PNG).json()
    expected = image_vector(native, pngs[0])
    np.testing.assert_allclose(answer["embeddings"], expected[None], atol=1e-5)


def test_answers_tell_how_much_of_a_text_is_unknown(
    server: Server, make_pack: MakePack, pngs: list[bytes]
) -> None:
    texts = ["ein Hund", "ein Hund 犬", "犬", "собака"]
    shares = make_pack("de").unknown_tokens(texts).tolist()
    assert shares[0] == 0 < shares[1] < 1 == shares[2]
    for text, share in zip(texts, shares, strict=True):
        answer = server.get("/v1/search", q=text, language="de").json()
        assert answer["unknown_tokens"] == pytest.approx(share)
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
    known = "q, language, find, k, offset, in_language, source, min_score, mode"
    assert known in detail
    assert answer.json()["errors"][0]["loc"] == ["query", "min_scor"]
    assert "there are none" in problem(
        server.client.post("/v1/captions?source=a", content=b"", headers=NDJSON),
        *(422, "invalid-request"),
    )
    assert server.get("/", q="x", like="y").status_code == 200  # the page's own address


def test_images_are_judged_before_they_are_decoded(server: Server) -> None:
    flat = BytesIO()
    Image.new("1", (9000, 9000)).save(flat, "PNG")  # 81 million pixels in 10 kB
    for data, words in ((flat.getvalue(), "pixels"), (b"hello", "the image is none of PNG")):
        answer = server.client.post("/v1/search/image", content=data, headers=PNG)
        assert words in problem(answer, 422, "bad-image")
    answer = server.client.post("/v1/search/image", content=b"<svg/>")
    problem(answer, 415, "unsupported-media-type")


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
