"""Promises of mla_ray.index.server about keys, certificates and versions."""

import json
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.server_version import check_version
from mla_ray.index.writing import open_collections
from tests.support.logs import logged
from tests.support.qdrant import OwnQdrant, own_qdrant

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 4)
ENTRY = Entry("a", "a", "", "", "s")
VECTOR = np.ones((1, 4), np.float32)


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server that gives every GET the same answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def root(version: str) -> str:
    return json.dumps({"title": "qdrant", "version": version})


def test_an_older_server_is_refused_with_both_versions_and_the_remedy() -> None:
    with answering(200, root("1.15.5")) as url, warnings.catch_warnings():
        warnings.simplefilter("error")  # qdrant-client's own check says nothing
        with pytest.raises(RuntimeError, match=r"Qdrant 1\.15\.5, .* needs 1\.16 .*; upgrade"):
            CaptionIndex.open(url, SPACE)


@pytest.mark.parametrize("version", ["1.16.0", "1.18.3", "1.20.0", "1.17.2-dev"])
def test_a_server_within_the_range_is_taken_silently(version: str) -> None:
    with logged("mla_ray.index") as messages:
        check_version(version, "http://host")
    assert messages == []


def test_a_newer_server_is_logged_once() -> None:
    with logged("mla_ray.index") as messages:
        for _ in range(2):
            check_version("1.99.0", "http://newer")
    (said,) = messages
    assert "1.99.0" in said
    assert "1.18.3" in said


@pytest.mark.parametrize(
    ("status", "body", "key", "said"),
    [
        (401, "Must provide an API key", None, "Must provide an API key; set QDRANT_API_KEY to"),
        (401, "Invalid API key or JWT", "hunter2", "Invalid .*; QDRANT_API_KEY is not a key of"),
        (
            403,
            '{"status":{"error":"Forbidden: Global manage access is required"},"time":0}',
            "hunter2",
            "HTTP 403: Forbidden: Global manage access is required; the key in QDRANT_API_KEY",
        ),
        (404, "<html>" + "x" * 5000, None, "HTTP 404: <html>x{294}$"),
    ],
)
@pytest.mark.filterwarnings("ignore:Api key is used")
def test_a_refusal_says_what_the_server_said_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, key: str | None, said: str
) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("QDRANT_API_KEY", key)
    with answering(status, body) as url, pytest.raises(RuntimeError, match=said) as refusal:
        CaptionIndex.open(url, SPACE)
    assert "hunter2" not in str(refusal.value)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnQdrant]:
    """A server with a key that may write, and one that may read."""
    keys = {"QDRANT__SERVICE__API_KEY": "writer", "QDRANT__SERVICE__READ_ONLY_API_KEY": "reader"}
    with own_qdrant(tmp_path_factory.mktemp("keyed"), **keys) as node:
        yield node


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:Api key is used")
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_keys_that_a_server_checks(
    monkeypatch: pytest.MonkeyPatch, keyed: OwnQdrant, scheme: str
) -> None:
    url = keyed.urls[scheme]
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match=r"Must provide an API key.*; set QDRANT_API_KEY to"):
        CaptionIndex.open(url, SPACE)
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    with pytest.raises(RuntimeError, match=r"Invalid API key.*; QDRANT_API_KEY is not") as refusal:
        CaptionIndex.open(url, SPACE)
    assert "hunter2" not in str(refusal.value)
    monkeypatch.setenv("QDRANT_API_KEY", "writer")
    with open_collections(url, SPACE) as collections:
        collections["captions"].upsert([ENTRY], VECTOR)
    monkeypatch.setenv("QDRANT_API_KEY", "reader")
    with CaptionIndex.open(url, SPACE, create=False) as index:
        assert [hit.entry for hit in index.search(VECTOR[0], 1)] == [ENTRY]
        with pytest.raises(RuntimeError, match=r"access is required; .* may only read cannot"):
            index.upsert([ENTRY], VECTOR)
    with (  # before anything is encoded
        pytest.raises(RuntimeError, match=r"access is required; .* may only read cannot"),
        open_collections(url, SPACE),
    ):
        pass


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OwnQdrant, Path]]:
    """A server with TLS, and the file of the CA that signed its certificate."""
    folder = tmp_path_factory.mktemp("certified")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    name = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), name, *files], check=True, capture_output=True)
    with own_qdrant(
        folder / "data",
        QDRANT__SERVICE__ENABLE_TLS="true",
        QDRANT__TLS__CERT=str(certificate),
        QDRANT__TLS__KEY=str(key),
    ) as node:
        yield node, certificate


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_one_variable_names_the_ca_of_a_server_with_tls(
    monkeypatch: pytest.MonkeyPatch, certified: tuple[OwnQdrant, Path], scheme: str
) -> None:
    node, ca_file = certified
    url = node.urls[scheme.removesuffix("s")].replace("://127.0.0.1", "s://localhost")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    with pytest.raises(ConnectionError, match=r"is not trusted.*set SSL_CERT_FILE"):
        CaptionIndex.open(url, SPACE)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    with CaptionIndex.open(url, SPACE) as index:
        assert index.upsert([ENTRY], VECTOR) == 1
        assert index.count() == 1
