"""Promises of `GET /v1/search?mode=hybrid`."""

import json
from pathlib import Path
from typing import Any

import pytest

from mla_ray.serving.schemas import TOKEN_VARIABLE
from tests.serving.app_server import Server, Start, ingest, problem

CODES = ["RX-7800", "RX-7900", "ZX-81"]


def search(server: Server, q: str, **params: Any) -> Any:
    asked = {"q": q, "language": "en", "find": "captions", "mode": "hybrid"} | params
    return server.get("/v1/search", **asked)


@pytest.fixture
def shop(server: Server) -> Server:
    """Thirty captions, of which three have codes."""
    texts = [f"a dog, number {row}" for row in range(27)]
    texts += [f"a dog beside the {code}" for code in CODES]
    rows = [
        {"image_id": str(row), "language": "en", "caption": text} for row, text in enumerate(texts)
    ]
    assert ingest(server, *rows)["written"] == 30
    return server


def test_a_code_is_found_in_any_language_of_the_query(shop: Server) -> None:
    for code in CODES:
        for language in ("en", "de"):
            hits = search(shop, code.lower(), language=language, k=2).json()["hits"]
            assert any(code in hit["caption"] for hit in hits)


def test_pages_of_a_hybrid_search_are_as_those_of_others(shop: Server) -> None:
    whole = search(shop, "dog RX-7800", k=30).json()
    assert (len(whole["hits"]), whole["next_offset"]) == (30, None)
    first = search(shop, "dog RX-7800", k=20).json()
    last = search(shop, "dog RX-7800", k=20, offset=first["next_offset"]).json()
    assert first["hits"] + last["hits"] == whole["hits"]
    assert search(shop, "dog", k=100, offset=99).status_code == 200


def test_a_hybrid_search_goes_with_captions_cosines_and_bounds(shop: Server) -> None:
    for params, where, said in (
        ({"find": "images"}, "mode", "find=captions"),
        ({"min_score": 0.2}, "min_score", "ranks"),
        ({"k": 100, "offset": 100}, "offset", "at most 99"),
        ({"mode": "words"}, "mode", "'vector' or 'hybrid'"),
    ):
        answer = search(shop, "dog", **params)
        assert said in problem(answer, 422, "invalid-request")
        assert answer.json()["errors"][0]["loc"] == ["query", where]


def test_an_index_without_words_answers_all_but_hybrid_searches(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    key = {"Authorization": "Bearer s3cret"}
    with start() as server:
        server.client.headers.update(key)
        ingest(server, {"image_id": "1", "language": "en", "caption": "a dog"})
    record = tmp_path / "index" / "captions" / "space.json"
    made = json.loads(record.read_text())
    record.write_text(json.dumps({name: made[name] for name in made if name != "words"}))
    with start() as server:
        server.client.headers.update(key)
        assert len(search(server, "dog", mode="vector").json()["hits"]) == 1
        assert "mla index --optimize" in problem(search(server, "dog"), 422, "invalid-request")
