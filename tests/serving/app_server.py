"""The app in this process, on a tiny native, and what the tests of all its modules ask of it."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.settings import Settings

NDJSON = {"Content-Type": "application/x-ndjson"}
PNG = {"Content-Type": "image/png"}


@dataclass
class Server:
    client: TestClient
    backend: LocalBackend
    settings: Settings

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(path, params=params)


Start = Callable[..., AbstractContextManager[Server]]


def ingest(server: Server, *lines: dict[str, Any] | str) -> dict[str, Any]:
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    answer = server.client.post("/v1/captions", content=body.encode(), headers=NDJSON)
    assert answer.status_code == 200
    result: dict[str, Any] = answer.json()
    return result


def problem(answer: Any, status: int, kind: str) -> str:
    """The detail of an answer that is a problem of that status and kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:mla-ray:problem:{kind}"
    assert body["status"] == status
    return str(body["detail"])


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.1)


def png_of(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return buffer.getvalue()
