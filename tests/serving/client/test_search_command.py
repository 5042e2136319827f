"""Promises of `mla search --url`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.client.contract_server import TOKEN, Server
from tests.support.commands import Mla


@pytest.fixture
def mla(mla: Mla, monkeypatch: pytest.MonkeyPatch) -> Mla:
    """In a window wide enough for messages to stay on their line."""
    monkeypatch.setenv("COLUMNS", "200")
    return mla


def test_search_asks_a_server(mla: Mla, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = TOKEN
    monkeypatch.setenv("MLA_API_TOKEN", TOKEN)
    run = mla("search", "ein Hund", "--url", server.url, "--language", "auto", "-k", 2, "--json")
    assert run.code == 0, run.err
    row = {"image_id": "photo 0", "score": 1.0, "language": "", "caption": "", "source": "test"}
    row |= {"unknown_tokens": 0.0}
    assert json.loads(run.out) == [row, row | {"image_id": "photo 1", "score": 0.99}]
    assert server.seen[0].query == "q=ein+Hund&language=auto&find=images&k=2&offset=0"
    wanted = ("--find", "captions", "--in-language", "de", "--source", "test")
    wanted += ("--min-score", "0.5")
    run = mla("search", "a dog", "--url", server.url, *wanted)
    assert run.out.splitlines()[0] == "1.000  photo 0  ein Hund"
    sent = "q=a+dog&language=auto&find=captions&k=10&offset=0&in_language=de&source=test"
    assert server.seen[1].query == f"{sent}&min_score=0.5"
    assert mla("search", "RX-7800", "--url", server.url, "--mode", "hybrid").code == 0
    sent = "q=RX-7800&language=auto&find=captions&k=10&offset=0&mode=hybrid"
    assert server.seen[2].query == sent


def test_search_says_how_much_of_the_query_is_unknown(mla: Mla, server: Server) -> None:
    for query, share, said in (("犬犬aa", 0.5, "50% of the query"), ("犬", 1, "ignore the query")):
        run = mla("search", query, "--url", server.url, "-k", 2, "--json")
        assert [row["unknown_tokens"] for row in json.loads(run.out)] == [share, share]
        assert said in run.err
        assert run.err.count("\n") == 1
    server.tells = False
    run = mla("search", "犬", "--url", server.url, "-k", 1, "--json")
    assert (json.loads(run.out)[0]["unknown_tokens"], run.err) == (None, "")


def test_search_by_picture_asks_a_server(
    mla: Mla, server: Server, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(png)
    run = mla("search", "--image", "red.png", "--url", server.url, "-k", 1, "--json")
    assert run.code == 0, run.err
    assert [row["caption"] for row in json.loads(run.out)] == ["ein Hund"]
    run = mla("search", "--image", "red.png", "--find", "images", "--url", server.url, "--json")
    assert {row["caption"] for row in json.loads(run.out)} == {""}
    assert server.seen[1].body == png


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog", "give either --index"),
        ("dog --index edge:x --url http://127.0.0.1:9", "give either --index"),
        ("--url http://127.0.0.1:9", "give either a text or --image"),
        ("dog --image x.png --url http://127.0.0.1:9", "give either a text or --image"),
        ("--index edge:x", "give a text"),
        ("--index edge:x --image x.png", "--image does not go with --index"),
        ("dog --index edge:x --mode hybrid --find images", "--mode hybrid is for captions"),
        ("dog --index edge:x --mode hybrid --min-score 0", "--min-score does not go with --mode"),
        ("dog --index edge:x --in-language de", "--in-language does not go with --index"),
        ("dog --index edge:x --source s", "--source does not go with --index"),
        ("dog --index edge:x --language auto", "--language auto needs a server"),
        ("dog --url http://127.0.0.1:9 --pack p", "--pack does not go with --url"),
        ("dog --url http://127.0.0.1:9 --native n", "--native does not go with --url"),
        (
            "--image x.png --language de --url http://127.0.0.1:9",
            "--language does not go with --image",
        ),
    ],
)
def test_search_options_that_do_not_go_together_are_bad_usage(
    mla: Mla, line: str, message: str
) -> None:
    run = mla("search", *line.split())
    assert run.code == 2
    assert message in run.err


def test_what_a_server_refuses_is_one_line(mla: Mla, server: Server, tmp_path: Path) -> None:
    server.token = TOKEN
    run = mla("search", "dog", "--url", server.url)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("mla: 401 ")
    assert "MLA_API_TOKEN" in run.err
    assert run.err.count("\n") == 1
    (tmp_path / "note.txt").write_text("hello")
    run = mla("search", "--image", "note.txt", "--url", server.url)
    assert run.err == "mla: not a picture in PNG, JPEG, WebP, GIF, BMP, AVIF or HEIC\n"
    run = mla("search", "--image", "none.png", "--url", server.url)
    assert run.code == 1
    assert "none.png" in run.err


def test_the_client_needs_no_models() -> None:
    code = "import sys, mla_ray.serving.client; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "ray", "open_clip", "qdrant_client", "serve", "fastapi"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
