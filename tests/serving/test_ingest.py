"""Promises of the ingest of captions: a bad line costs itself only, twice is once."""

import gzip
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mla_ray.index.encoders import Encoders
from mla_ray.index.ingest import caption_entry
from mla_ray.serving.engines import Text
from tests.serving.app_server import NDJSON, PNG, Server, ingest, png_of, problem
from tests.support.natives import MakePack


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


def test_unchanged_lines_are_not_encoded_again(
    server: Server, make_pack: MakePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = server.backend._text.encode

    def seen(texts: list[Text], prepared: Any) -> Any:
        encoded.extend(text for _, text in texts)
        return encode(texts, prepared)

    monkeypatch.setattr(server.backend._text, "encode", seen)
    german = {"image_id": "a", "language": "de", "caption": "ein Hund", "id": "1"}
    lines = [german, {"image_id": "a", "language": "en", "caption": "a dog"}]
    assert [ingest(server, *lines)["unchanged"] for _ in range(2)] == [0, 2]
    assert encoded == ["ein Hund", "a dog"]
    changed = german | {"caption": "zwei Hunde"}
    result = ingest(server, changed, lines[1])
    assert (result["written"], result["unchanged"]) == (2, 1)
    assert encoded[2:] == ["zwei Hunde"]
    # Of several lines for one caption the last one counts, also if it is the one that is stored.
    ingest(server, german, changed)
    assert encoded[3:] == ["ein Hund", "zwei Hunde"]
    listed = server.get("/v1/captions", language="de").json()["captions"]
    assert [row["caption"] for row in listed] == ["zwei Hunde"]
    renew(server, make_pack)
    assert ingest(server, changed, lines[1])["unchanged"] == 1  # the English one
    assert encoded[5:] == ["zwei Hunde"]


def renew(server: Server, make_pack: MakePack) -> None:
    """Put another German pack into the store, and wait until it is served."""
    pack = make_pack("de", texts=["zwei Hunde"])
    fingerprint = server.backend._text.native.fingerprint
    pack.card = pack.card.model_copy(update={"fingerprint": fingerprint})

    def version() -> Any:
        rows = server.get("/v1/languages").json()["languages"]
        return next(row["version"] for row in rows if row["language"] == "de")

    before = version()
    folder = Path(server.settings.packs) / "de"
    shutil.rmtree(folder)
    pack.save(folder)
    for _ in range(100):
        if version() not in (None, before):
            return
        threading.Event().wait(0.1)
    raise AssertionError("the new pack is not served within 10 s")


def test_what_http_and_tables_write_has_the_same_hash(server: Server) -> None:
    native = server.backend._text.native
    for language, caption in (("de", "ein Hund"), ("en", "a dog")):
        ingest(server, {"image_id": "a", "language": language, "caption": caption, "source": "s"})
        entry = caption_entry("a", language, caption, "s")
        packs = {"de": Path(server.settings.packs) / "de"}
        stored = server.backend._index.collections["captions"].hashes([entry])
        assert stored == [Encoders(native, packs).hash_of(entry)]


def test_what_tables_take_is_taken(server: Server) -> None:
    good = {"language": "de", "caption": "ein Hund"}
    result = ingest(
        server,
        good | {"image_id": 139},
        good | {"image_id": "139"},
        good | {"image_id": "a", "id": 7},
        good | {"image_id": True},
        good | {"image_id": 1.5},
        good | {"image_id": "\u200b"},
    )
    assert (result["written"], result["rejected"]) == (3, 3)
    assert [error["error"].partition(":")[0] for error in result["errors"]] == ["image_id"] * 3
    found = server.get("/v1/search", q="ein Hund", language="de", find="captions").json()["hits"]
    assert sorted(hit["image_id"] for hit in found) == ["139", "a"]


def test_spaces_make_no_other_caption(server: Server) -> None:
    captions = ["a dog", " a dog", "a  dog", "a\u00a0dog\t", "\ufeffa dog"]
    lines = [{"image_id": "set/00", "language": "en", "caption": caption} for caption in captions]
    assert ingest(server, *lines)["rejected"] == 0
    hits = server.get("/v1/search", q="a   dog", language="en", find="captions").json()["hits"]
    assert [(hit["image_id"], hit["caption"]) for hit in hits] == [("set/00", "a dog")]


@pytest.mark.parametrize(
    "kind", ["application/x-ndjson", "application/jsonl", "application/jsonl; charset=utf-8"]
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_may_be_jsonl_marked_and_packed(
    server: Server, kind: str, mark: bytes, packed: bool
) -> None:
    line = {"image_id": "set/00", "language": "de", "caption": "Käse"}
    body = mark + json.dumps(line, ensure_ascii=False).encode()
    headers = {"Content-Type": kind} | ({"Content-Encoding": "gzip"} if packed else {})
    answer = server.client.post(
        "/v1/captions", content=gzip.compress(body) if packed else body, headers=headers
    )
    counts = {"received": 1, "written": 1, "unchanged": 0, "rejected": 0}
    assert answer.json() == counts | {"errors": []}


def test_a_packed_body_is_bounded_by_its_content(server: Server) -> None:
    headers = NDJSON | {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * (65 << 20))
    assert len(bomb) < 1 << 20
    answer = server.client.post("/v1/captions", content=bomb, headers=headers)
    assert "when unpacked" in problem(answer, 413, "too-large")
    answer = server.client.post("/v1/captions", content=b"{}", headers=headers)
    assert "not gzip" in problem(answer, 422, "invalid-request")
    answer = server.client.post(
        "/v1/captions", content=b"{}", headers=NDJSON | {"Content-Encoding": "br"}
    )
    assert "gzip, or none" in problem(answer, 415, "unsupported-media-type")


def test_an_index_without_room_is_told_and_goes_on_being_searched(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    line = json.dumps({"image_id": "new", "language": "en", "caption": "a new dog"})
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: usage._replace(free=1))
        answer = server.client.post("/v1/captions", content=line, headers=NDJSON)
        detail = problem(answer, 507, "index-not-writable")
        assert "MB are needed" in detail
        assert server.settings.index.removeprefix("edge:") not in detail
        put = server.client.put("/v1/images/new", content=png_of("red"), headers=PNG)
        problem(put, 507, "index-not-writable")
        assert server.get("/v1/search", q="a dog", language="en").status_code == 200
    assert ingest(server, line)["written"] == 1


def test_an_image_has_one_id_however_it_is_spelled(server: Server) -> None:
    composed, decomposed = "K\u00e4se", "Ka\u0308se"
    line = {"language": "en", "caption": "a piece of cheese"}
    ingest(server, line | {"image_id": composed}, line | {"image_id": f" {decomposed}\u200b"})
    put = server.client.put(f"/v1/images/{decomposed}", content=png_of("red"), headers=PNG)
    assert put.json()["image_id"] == composed
    assert server.get(f"/v1/images/{composed}", source="http").status_code == 200
    found = server.get("/v1/search", q="cheese", language="en", find="captions", source="http")
    assert [hit["image_id"] for hit in found.json()["hits"]] == [composed]
