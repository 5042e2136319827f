"""Promises of the ingest of captions: a bad line costs itself only, twice is once."""

import json

from tests.serving.app_server import Server, ingest


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
