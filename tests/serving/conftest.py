"""A server of a tiny native in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.schemas import TOKEN_VARIABLE
from mla_ray.serving.settings import Settings
from tests.serving.app_server import PNG, Server, Start
from tests.support.natives import MakePack


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
            pictures=str(tmp_path / "pictures"),
            **{
                "index": f"edge:{tmp_path / 'index'}",
                "scan_every_s": 0.1,
                "hosts": ["127.0.0.1", "testserver"],
                **settings,
            },
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
