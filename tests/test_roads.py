"""One caption table by every road into an index: the same ids, payloads and vectors.

The table is written as people write tables: captions decomposed, with spaces around them and byte
order marks in them, languages in capitals, image ids as numbers, images beside the table.
"""

import csv
import json
import socket
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qdrant_edge as edge
import uvicorn
from fastapi.testclient import TestClient

from mla_ray.index.bulk import index_table
from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.client import Client
from mla_ray.serving.settings import Settings
from tests.support.bulk import without_ray
from tests.support.commands import Mla
from tests.support.natives import MakePack

ROWS, IMAGES, SOURCE = 1200, 12, "drawings"
TAGS = {"en": "EN", "de": "De", "hi": "hi"}
Row = dict[str, Any]
Points = dict[str, tuple[dict[str, Any], npt.NDArray[np.float32]]]


@pytest.fixture(scope="module")
def rows(corpus: dict[str, list[str]]) -> list[Row]:
    """As they are typed; `clean` has each caption as it has to come out."""
    rng, made = np.random.default_rng(0), []
    for number in range(ROWS):
        language = list(TAGS)[number % len(TAGS)]
        clean = f"{corpus[language][number % 6]} Nº {number}"
        typed = unicodedata.normalize("NFD" if number % 2 else "NFC", clean)
        before, after = (str(rng.choice(["", " ", "\u00a0", "\u3000", "\ufeff"])) for _ in "ab")
        made.append(
            {
                "image_id": int(rng.integers(IMAGES)),
                "language": TAGS[language],
                "caption": before + typed + after,
                "clean": (language, unicodedata.normalize("NFC", clean)),
            }
        )
    return made


@pytest.fixture(scope="module")
def tables(
    rows: list[Row], pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The table by format, in a folder with its images."""
    folder = tmp_path_factory.mktemp("tables")
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(pngs[number])
    by_path = [
        {
            "image_id": row["image_id"],
            "image": f"{row['image_id']}.png",
            "language": row["language"],
            "caption": row["caption"],
        }
        for row in rows
    ]
    for name, dialect in (("captions.csv", csv.excel), ("captions.tsv", csv.excel_tab)):
        with (folder / name).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(by_path[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(by_path)
    lines = [json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(by_path)]
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    inside = [row | {"image": pngs[row["image_id"]]} for row in by_path]
    pq.write_table(pa.Table.from_pylist(inside), folder / "captions.parquet")
    (folder / "parts").mkdir()
    for part in range(12):
        piece = pa.Table.from_pylist(inside[part::12])
        pq.write_table(piece, folder / "parts" / f"part_{part}.parquet")
    files = [*folder.glob("captions.*"), folder / "parts"]
    return {file.name: file for file in files}


@pytest.fixture(scope="module")
def packs(
    make_pack: MakePack, native_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    for language in ("de", "hi"):
        pack = make_pack(language)
        pack.card = pack.card.model_copy(update={"native": str(native_folder)})
        pack.save(folder / language)
    return {language: folder / language for language in ("de", "hi")}


def points(index: Path, collection: str) -> Points:
    """All points of a collection of the embedded engine, read without mla-ray."""
    (folder,) = [path for path in (index / collection).iterdir() if path.is_dir()]
    shard, found, start = edge.EdgeShard.load(str(folder)), {}, None
    while True:
        request = edge.ScrollRequest(offset=start, limit=1000, with_payload=True, with_vector=True)
        page, start = shard.scroll(request)
        for point in page:
            found[str(point.id)] = (
                point.payload or {},
                np.asarray(point.vector["joint"], np.float32),
            )
        if start is None:
            break
    shard.close()
    return found


def assert_same(one: Points, two: Points) -> None:
    assert one.keys() == two.keys()
    for key, (payload, vector) in one.items():
        assert payload == two[key][0]
        np.testing.assert_allclose(vector, two[key][1], atol=1e-6)


@pytest.fixture(scope="module")
def expected(
    tables: dict[str, Path],
    packs: dict[str, Path],
    native_folder: Path,
    rows: list[Row],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Points]:
    """By one road, checked against the rows; the others are compared with it."""
    index, table = tmp_path_factory.mktemp("index"), str(tables["captions.jsonl"])
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        done = index_table(f"edge:{index}", str(native_folder), packs, [table], SOURCE)
    assert (done.rejected, done.reasons) == (0, [])
    found = {name: points(index, name) for name in ("images", "captions")}
    assert len(found["images"]) == IMAGES
    said = sorted((p["language"], p["caption"]) for p, _ in found["captions"].values())
    assert said == sorted(row["clean"] for row in rows)
    return found


@pytest.mark.parametrize(
    "name", ["captions.parquet", "captions.csv", "captions.tsv", "captions.jsonl"]
)
def test_by_the_command_line(
    name: str,
    tables: dict[str, Path],
    packs: dict[str, Path],
    native_folder: Path,
    expected: dict[str, Points],
    mla: Mla,
    tmp_path: Path,
) -> None:
    given = [flag for folder in packs.values() for flag in ("--pack", folder)]
    done = mla(
        *("index", "--captions", tables[name], "--native", native_folder, *given),
        *("--index", f"edge:{tmp_path / 'index'}", "--source", SOURCE, "--json"),
    )
    assert done.code == 0, done.err
    for collection, there in expected.items():
        assert_same(points(tmp_path / "index", collection), there)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["parts", "captions.parquet", "captions.csv", "captions.tsv", "captions.jsonl"]
)
def test_by_a_job(
    name: str,
    tables: dict[str, Path],
    packs: dict[str, Path],
    native_folder: Path,
    expected: dict[str, Points],
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"edge:{tmp_path / 'index'}"
    done = index_table(url, str(native_folder), packs, [str(tables[name])], SOURCE)
    assert (done.rejected, done.reasons) == (0, [])
    for collection, there in expected.items():
        assert_same(points(tmp_path / "index", collection), there)


def without_hashes(points: Points) -> Points:
    """As a server writes images: `mla index` encodes them once more and adds the hash."""
    return {
        key: ({name: value for name, value in payload.items() if name != "hash"}, vector)
        for key, (payload, vector) in points.items()
    }


Send = Callable[[Settings, list[Row], list[bytes]], None]


@contextmanager
def app(settings: Settings) -> Iterator[Any]:
    backend = LocalBackend(settings)
    try:
        yield create_app(backend, settings)
    finally:
        backend.close()


def by_http(settings: Settings, records: list[Row], pngs: list[bytes]) -> None:
    with app(settings) as served, TestClient(served, base_url="http://127.0.0.1") as client:
        for number in range(IMAGES):
            put = client.put(
                f"/v1/images/{number}",
                params={"source": SOURCE},
                content=pngs[number],
                headers={"Content-Type": "image/png"},
            )
            assert put.status_code == 200, put.text
        body = "\ufeff" + "\n".join(json.dumps(record) for record in records)
        sent = client.post(
            "/v1/captions",
            content=body.encode(),
            headers={"Content-Type": "application/x-ndjson"},
        )
        result = sent.json()
        assert (result["received"], result["written"]) == (ROWS, ROWS)
        assert (result["rejected"], result["errors"]) == (0, [])


def by_client(settings: Settings, records: list[Row], pngs: list[bytes]) -> None:
    with app(settings) as served, socket.create_server(("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(served, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{sock.getsockname()[1]}") as client:
                for number in range(IMAGES):
                    client.put_image(str(number), pngs[number], source=SOURCE)
                done = client.ingest(records)
                assert (done.written, done.rejected) == (ROWS, 0)
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("send", [by_http, by_client])
def test_by_a_server(
    send: Send,
    rows: list[Row],
    pngs: list[bytes],
    packs: dict[str, Path],
    native_folder: Path,
    expected: dict[str, Points],
    tmp_path: Path,
) -> None:
    settings = Settings(
        native=str(native_folder),
        packs=str(next(iter(packs.values())).parent),
        index=f"edge:{tmp_path / 'index'}",
    )
    records = [
        {
            "image_id": str(row["image_id"]),
            "language": row["language"],
            "caption": row["caption"],
            "source": SOURCE,
        }
        for row in rows
    ]
    send(settings, records, pngs)
    for collection, there in expected.items():
        if collection == "images":
            there = without_hashes(there)
        assert_same(points(tmp_path / "index", collection), there)
