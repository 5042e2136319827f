"""Promises of the languages that are served: detected, resolved, followed as packs change."""

import hashlib
import json
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.serving.app_server import Server, problem
from tests.support.natives import MakePack


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
    assert broken["sv"].endswith("the previous version is served")
    assert ill.get("/v1/search", q="en hund", language="sv").status_code == 200


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
