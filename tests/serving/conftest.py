"""A server of a tiny native in this process."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from mla_ray.index import edge_folder
from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.schemas import TOKEN_VARIABLE
from mla_ray.serving.settings import Settings
from tests.serving.app_server import PNG, Server, Start
from tests.support.natives import MakePack


@contextmanager
def running(folder: Path, native_folder: Path, **settings: Any) -> Iterator[Server]:
    """A server of the packs, the index and the pictures in a folder."""
    given = Settings(
        native=str(native_folder),
        packs=str(folder / "packs"),
        pictures=str(folder / "pictures"),
        **{
            "index": f"edge:{folder / 'index'}",
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


@contextmanager
def running_with_token(patch: pytest.MonkeyPatch, start: Start) -> Iterator[Server]:
    patch.setenv(TOKEN_VARIABLE, "s3cret")
    with start() as server:
        server.client.headers["Authorization"] = "Bearer s3cret"
        yield server


@pytest.fixture(scope="session")
def with_images(
    native_folder: Path,
    make_pack: MakePack,
    pngs: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What a server left that had German and Hindi and was sent twelve images."""
    folder, native = tmp_path_factory.mktemp("filled"), Native.load(str(native_folder))
    for language in ("de", "hi"):
        pack = make_pack(language)
        pack.card = pack.card.model_copy(update={"fingerprint": native.fingerprint})
        pack.save(folder / "packs" / language)
    with (
        pytest.MonkeyPatch.context() as patch,
        running_with_token(patch, partial(running, folder, native_folder)) as server,
    ):
        for number, png in enumerate(pngs):
            answer = server.client.put(f"/v1/images/set/{number:02}", content=png, headers=PNG)
            assert answer.status_code == 200
    return folder


@pytest.fixture
def start(tmp_path: Path, native_folder: Path, with_images: Path) -> Start:
    """Starts a server of a tiny native, with German and Hindi, and no image."""
    shutil.copytree(with_images / "packs", tmp_path / "packs")
    return partial(running, tmp_path, native_folder)


def copy_with_holes(source: str, target: str) -> None:
    """An index is 150 MB of holes."""
    edge_folder._copy_data(Path(source), Path(target))


@pytest.fixture
def server(
    start: Start, with_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """One that has its twelve images already."""
    for name in ("index", "pictures"):
        shutil.copytree(with_images / name, tmp_path / name, copy_function=copy_with_holes)
    with running_with_token(monkeypatch, start) as server:
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
