"""Promises of `mla serve`: the application on Ray Serve, over HTTP, through change and failure."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pyarrow as pa
import pytest

from mla_ray.index.collection import CaptionIndex
from mla_ray.index.ingest import index_captions, space_of
from mla_ray.model.native import Native
from mla_ray.packs.library import load_packs
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.cluster import free_port
from tests.serving.expected import image_vector, nearest, text_vector
from tests.support import ROOT
from tests.support.load import Load
from tests.support.natives import MakePack
from tests.support.prometheus import Series, deployments, scraped_when
from tests.support.server import Served, serving

MLA = Path(sys.executable).parent / "mla"


class Place:
    """A pack store, an index and a native, and a server of them."""

    def __init__(self, folder: Path, native: Native, make_pack: MakePack) -> None:
        self.packs = folder / "packs"
        self.index = f"edge:{folder / 'index'}"
        self.native = native
        self._make_pack = make_pack
        self.server: Served
        self.metrics = f"127.0.0.1:{free_port()}"
        self.scratch = ""

    def put_pack(
        self, language: str, seed: int = 0, texts: list[str] | None = None
    ) -> LanguagePack:
        pack = self._make_pack(language, seed, texts)
        pack.card = pack.card.model_copy(update={"fingerprint": self.native.fingerprint})
        pack.save(self.packs / language)
        return pack

    def get(self, path: str, **params: Any) -> httpx2.Response:
        return httpx2.get(self.server.url + path, params=params, timeout=30)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.server.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                if child.cmdline()[:1] == [f"ray::ServeReplica:mla-ray:{deployment}"]:
                    found.append(child)
        return found


Expected = dict[tuple[str, str], list[str]]


@pytest.fixture(scope="module")
def expected(
    native: Native, make_pack: MakePack, corpus: dict[str, list[str]], pngs: list[bytes]
) -> Expected:
    """The nearest images, by language and text."""
    images = [image_vector(native, png) for png in pngs]
    packs = {"en": None, "de": make_pack("de"), "hi": make_pack("hi")}
    return {
        (language, text): [
            f"set/{place:02}" for place, _ in nearest(text_vector(native, pack, text), images, 5)
        ]
        for language, pack in packs.items()
        for text in corpus[language]
    }


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    native_folder: Path,
    make_pack: MakePack,
    pngs: list[bytes],
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("served")
    place = Place(folder, Native.load(str(native_folder)), make_pack)
    for language in ("de", "hi"):
        place.put_pack(language)
    packs = load_packs([place.packs / "de", place.packs / "hi"], place.native)
    rows = [
        {"image_id": f"set/{n:02}", "image": png, "language": "en", "caption": f"a dog {n}"}
        for n, png in enumerate(pngs)
    ]
    index_captions(place.index, place.native, packs, pa.Table.from_pylist(rows), "set")
    flags = ["--native", str(native_folder), "--packs", str(place.packs), "--index", place.index]
    flags += ["--metrics-port", place.metrics.rpartition(":")[2]]
    with (
        tempfile.TemporaryDirectory(prefix="mla-", dir="/tmp") as place.scratch,
        serving(*flags, TMPDIR=place.scratch) as place.server,
    ):
        yield place


def test_http_finds_the_images_of_the_highest_cosines(place: Place, expected: Expected) -> None:
    for (language, text), ids in expected.items():
        found = place.get("/v1/search", q=text, language=language, k=5).json()
        assert [hit["image_id"] for hit in found["hits"]] == ids


def test_every_part_is_well_and_says_so(place: Place) -> None:
    assert place.get("/healthz").json() == {
        "status": "ok",
        "parts": {"text": "ok", "image": "ok", "index": "ok"},
    }


def test_http_is_on_loopback_alone(place: Place) -> None:
    """All but the gRPC ports of replicas, which Ray opens everywhere and guards by its token."""
    processes = psutil.Process(place.server.process.pid).children(recursive=True)
    open_to_all = {
        process.name()
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    }
    assert all(name.startswith("ray::ServeReplica") for name in open_to_all), open_to_all


def test_prometheus_finds_the_metrics_of_all_replicas(place: Place) -> None:
    """`test_monitoring.py` has the rest."""
    place.get("/v1/search", q="Geheimnis", language="de")

    def complete(series: Series) -> bool:
        return (
            deployments(series, "ray_mla_http_requests_total") == {"Ingress"}
            and deployments(series, "ray_mla_wait_seconds_count") >= {"JointEncoder", "Index"}
            and deployments(series, "ray_mla_index_up") == {"Index"}
        )

    series, page = scraped_when(lambda: [place.metrics], complete)
    assert complete(series), series.keys()
    assert "geheimnis" not in page.lower()


def wait_until(true: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def languages(place: Place) -> set[str]:
    return {row["language"] for row in place.get("/v1/languages").json()["languages"]}


def test_packs_come_change_and_go_under_load_without_a_failed_request(place: Place) -> None:
    with Load(place.server.url, ["de", "hi", "en"]) as load:
        place.put_pack("cs", texts=["pes", "kočka"])
        wait_until(lambda: "cs" in languages(place), 5, "cs is served")
        assert place.get("/v1/search", q="pes", language="cs").status_code == 200

        def vector() -> Any:
            body = {"inputs": [{"text": "ein Hund", "language": "de"}]}
            answer = httpx2.post(f"{place.server.url}/v1/embeddings/text", json=body, timeout=30)
            return np.array(answer.json()["embeddings"][0])

        old = vector()
        new = place.put_pack("de", seed=5).encode_text(["ein Hund"]).numpy()[0]
        new /= np.linalg.norm(new)
        assert not np.allclose(old, new, atol=1e-3)
        wait_until(lambda: np.allclose(vector(), new, atol=1e-5), 5, "the new German is served")

        shutil.rmtree(place.packs / "cs")
        wait_until(lambda: "cs" not in languages(place), 5, "cs is gone")
        answer = place.get("/v1/search", q="pes", language="cs")
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:mla-ray:problem:unknown-language"
        place.put_pack("de")
    assert len(load.answers) > 5  # a slow machine answers few
    assert load.failed == []


@pytest.mark.slow
def test_a_killed_encoder_costs_no_request(place: Place) -> None:
    with Load(place.server.url, ["de", "en"]) as load:
        (victim,) = place.replicas("JointEncoder")
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()

        def replaced() -> bool:
            return place.replicas("JointEncoder") not in ([], [victim])

        def answered() -> bool:
            return any(at > killed + 2 and status == 200 for at, status in load.answers)

        wait_until(replaced, 60, "another replica")
        wait_until(answered, 60, "answers by it")
    assert load.failed == []


@pytest.mark.slow
def test_a_killed_index_owner_comes_back_with_all_its_points(place: Place) -> None:
    count = lambda: place.get("/v1/search", q="x", language="en", k=20).json()  # noqa: E731
    before = count()
    (victim,) = place.replicas("Index")
    victim.send_signal(signal.SIGKILL)
    wait_until(
        lambda: place.get("/healthz").status_code == 200 and place.replicas("Index") != [victim],
        60,
        "the index is served again",
    )
    assert count() == before


@pytest.mark.slow
def test_an_ingest_killed_in_mid_stream_and_run_again_loses_and_doubles_nothing(
    place: Place, tmp_path: Path
) -> None:
    lines = [
        json.dumps({"image_id": f"set/{n % 12:02}", "language": "de", "caption": f"Hund {n}"})
        for n in range(3000)
    ]
    (tmp_path / "captions.ndjson").write_text("\n".join(lines))
    send = (
        "import sys, httpx2, time\n"
        "def body():\n"
        "    for line in open(sys.argv[2], 'rb'):\n"
        "        yield line\n"
        "        time.sleep(0.001)\n"
        "httpx2.post(sys.argv[1] + '/v1/captions', content=body(), timeout=60,\n"
        "           headers={'Content-Type': 'application/x-ndjson'})\n"
    )
    command = [sys.executable, "-c", send, place.server.url, str(tmp_path / "captions.ndjson")]

    def written() -> int:
        rows = place.get("/v1/languages").json()["languages"]
        return next(int(row["captions"]) for row in rows if row["language"] == "de")

    with subprocess.Popen(command) as process:
        wait_until(lambda: 0 < written() < 3000, 60, "the ingest is under way")
        process.kill()
    assert written() < 3000

    unchanged = []
    for _ in range(2):
        answer = httpx2.post(
            f"{place.server.url}/v1/captions",
            content="\n".join(lines).encode(),
            headers={"Content-Type": "application/x-ndjson"},
            timeout=120,
        )
        result = answer.json()
        unchanged.append(result.pop("unchanged"))
        assert result == {"received": 3000, "written": 3000, "rejected": 0, "errors": []}
        assert written() == 3000
    assert unchanged[0] < 3000
    assert unchanged[1] == 3000


def test_the_command_line_searches_the_server(place: Place, expected: Expected) -> None:
    command = [MLA, "search", "Katze", "--language", "de", "--url", place.server.url, "-k", "5"]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [hit["image_id"] for hit in json.loads(run.stdout)] == expected["de", "Katze"]


def test_a_taken_port_is_named(place: Place) -> None:
    port = place.server.url.rpartition(":")[2]
    flags = ["--packs", str(place.packs), "--index", place.index, "--port", port, "--no-open"]
    run = subprocess.run([MLA, "serve", *flags], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"cannot bind 127.0.0.1:{port}" in run.stderr
    flags[flags.index("--port")] = "--metrics-port"
    run = subprocess.run([MLA, "serve", *flags, "--port", str(free_port())], capture_output=True)
    assert run.returncode == 1
    assert f"cannot bind 127.0.0.1:{port}" in run.stderr.decode()


def test_another_address_needs_a_token(place: Place) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MLA_API_TOKEN"}
    flags = ["--packs", str(place.packs), "--index", place.index, "--host", "0.0.0.0"]  # noqa: S104
    run = subprocess.run(
        [MLA, "serve", *flags], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 1
    assert "MLA_API_TOKEN" in run.stderr


def test_it_ends_when_told_and_leaves_nothing_behind(place: Place) -> None:
    """The last in this file: it ends the server."""
    process = psutil.Process(place.server.process.pid)
    children = process.children(recursive=True)
    assert len(children) > 5
    captions = {
        row["language"]: row["captions"] for row in place.get("/v1/languages").json()["languages"]
    }
    assert captions["en"] == 12
    process.terminate()
    assert place.server.process.wait(90) == 0
    _, alive = psutil.wait_procs(children, 30)
    assert alive == []
    assert not [path for path in Path(place.scratch).iterdir() if path.name.startswith("mla-")]
    with CaptionIndex.open(place.index, space_of(place.native), "captions", create=False) as index:
        assert {language: index.count(language=language) for language in captions} == captions


def test_the_configuration_for_clusters_is_one_that_serve_takes() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from mla_ray.serving.settings import Settings

    path = ROOT / "serve" / "config.yaml"
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert config.http_options.host == "127.0.0.1"
    (application,) = config.applications
    Settings.model_validate(application.args)
    names = {deployment.name for deployment in application.deployments}
    assert names == {"Ingress", "TextEncoder", "ImageEncoder", "Index"}
