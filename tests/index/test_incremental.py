"""Promises of indexing again: what is new or changed is encoded, and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.keys import key_of
from mla_ray.index import encoders as encoders_module
from mla_ray.index.bulk import PointEncoder
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex, Entry
from mla_ray.index.encoders import Encoders
from mla_ray.index.indexed import Indexed
from mla_ray.index.ingest import (
    caption_entry,
    entries_of,
    image_entry,
    index_captions,
    index_rows,
    keep_pictures,
    space_of,
)
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.server import connect
from mla_ray.index.stored import StoredHashes
from mla_ray.index.table_blocks import _rows_of
from mla_ray.model.directions import Floats
from mla_ray.model.native import Native
from tests.support.commands import Mla
from tests.support.natives import MakePack

SERVERS = {"http": "MLA_TEST_QDRANT_URL", "grpc": "MLA_TEST_QDRANT_GRPC_URL"}
SOURCE = "photos"


@pytest.fixture(params=["edge", *(pytest.param(s, marks=pytest.mark.server) for s in SERVERS)])
def url(request: pytest.FixtureRequest, native: Native, tmp_path: Path) -> Iterator[str]:
    if request.param == "edge":
        yield f"edge:{tmp_path / 'index'}"
        return
    address = os.environ.get(SERVERS[request.param])
    if not address:
        pytest.skip(f"{SERVERS[request.param]} is not set")
    forget(address, native)
    yield address
    forget(address, native)


def forget(address: str, native: Native) -> None:
    client = connect(address)
    for collection in client.get_collections().collections:
        if f"-{native.fingerprint[:12]}-v" in collection.name:
            client.delete_collection(collection.name)


@pytest.fixture
def packs(make_pack: MakePack, tmp_path: Path) -> dict[str, Path]:
    make_pack("de").save(tmp_path / "packs" / "de")
    return {"de": tmp_path / "packs" / "de"}


@pytest.fixture
def table(pngs: list[bytes]) -> pa.Table:
    """Six images, each with an English and a German caption."""
    rows = [
        {"image_id": f"i{i}", "image": pngs[i], "language": language, "caption": f"{text} {i}"}
        for i in range(6)
        for language, text in (("en", "a dog"), ("de", "ein Hund"))
    ]
    return pa.Table.from_pylist(rows)


class Seen:
    """What was encoded: the captions' texts, and the number of images."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.images = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen, texts_of, images_of = Seen(), Encoders.encode_captions, Encoders.encode_images

    def captions(self: Encoders, language: str, texts: list[str]) -> Floats:
        seen.texts += texts
        return texts_of(self, language, texts)

    def images(self: Encoders, pictures: Iterable[Sequence[Image.Image]]) -> Iterator[Floats]:
        for part in images_of(self, pictures):
            seen.images += len(part)
            yield part

    monkeypatch.setattr(Encoders, "encode_captions", captions)
    monkeypatch.setattr(Encoders, "encode_images", images)
    return seen


def everything(url: str, native: Native) -> dict[tuple[str, Entry], tuple[float, str | None]]:
    """Score for one query and hash of every entry, by collection."""
    found = {}
    for name in (IMAGES, CAPTIONS):
        with CaptionIndex.open(url, space_of(native), name, create=False) as index:
            hits = index.search(np.arange(1, native.dim + 1, dtype=np.float32), 1000)
            hashes = index.hashes([hit.entry for hit in hits])
            assert len(hits) == index.count()
        found |= {(name, h.entry): (h.score, x) for h, x in zip(hits, hashes, strict=True)}
    return found


def with_cell(table: pa.Table, column: str, values: Mapping[int, object]) -> pa.Table:
    cells = [values.get(row, cell) for row, cell in enumerate(table[column].to_pylist())]
    return table.set_column(table.column_names.index(column), column, pa.array(cells))


def test_a_table_that_has_not_changed_is_not_encoded_again(
    url: str, native: Native, packs: dict[str, Path], table: pa.Table, seen: Seen
) -> None:
    first = index_captions(url, native, packs, table, SOURCE)
    assert first.encoded == first.written == {IMAGES: 6, CAPTIONS: 12}
    assert (len(seen.texts), seen.images) == (12, 6)
    before = everything(url, native)
    assert all(hash_ for _, hash_ in before.values())
    again = index_captions(url, native, packs, table, SOURCE)
    assert again.unchanged == again.written == {IMAGES: 6, CAPTIONS: 12}
    assert again.encoded == {IMAGES: 0, CAPTIONS: 0}
    assert (len(seen.texts), seen.images) == (12, 6)
    assert everything(url, native) == before


def test_another_source_is_encoded_for_itself(
    url: str, native: Native, packs: dict[str, Path], table: pa.Table
) -> None:
    index_captions(url, native, packs, table, SOURCE)
    done = index_captions(url, native, packs, table, "other")
    assert done.encoded == {IMAGES: 6, CAPTIONS: 12}


def test_one_caption_changed_is_encoded_alone(
    url: str, native: Native, packs: dict[str, Path], table: pa.Table, seen: Seen
) -> None:
    index_captions(url, native, packs, table, SOURCE)
    seen.texts.clear()
    changed = with_cell(table, "caption", {3: "zwei Hunde"})
    done = index_captions(url, native, packs, changed, SOURCE)
    assert done.encoded == {IMAGES: 0, CAPTIONS: 1}
    assert (seen.texts, seen.images) == (["zwei Hunde"], 6)
    untidy = with_cell(changed, "caption", {3: " zwei  Hunde"})  # the same when normalized
    assert index_captions(url, native, packs, untidy, SOURCE).encoded[CAPTIONS] == 0


def test_one_image_changed_is_encoded_alone(
    url: str,
    native: Native,
    packs: dict[str, Path],
    table: pa.Table,
    pngs: list[bytes],
    seen: Seen,
    tmp_path: Path,
) -> None:
    index_captions(url, native, packs, table, SOURCE)
    before = everything(url, native)
    changed = with_cell(table, "image", {4: pngs[9], 5: pngs[9]})
    done = index_captions(url, native, packs, changed, SOURCE)
    assert done.encoded == {IMAGES: 1, CAPTIONS: 0}
    assert (len(seen.texts), seen.images) == (12, 7)
    after = everything(url, native)
    assert [key[1].id for key in after if after[key] != before[key]] == ["i2"]
    fresh = f"edge:{tmp_path / 'fresh'}"
    index_captions(fresh, native, packs, changed, SOURCE)
    at = (IMAGES, image_entry("i2", SOURCE))
    assert after[at] == (pytest.approx(everything(fresh, native)[at][0], abs=1e-5), after[at][1])


def test_a_changed_pack_encodes_its_captions_again(
    url: str,
    native: Native,
    packs: dict[str, Path],
    make_pack: MakePack,
    table: pa.Table,
    seen: Seen,
) -> None:
    index_captions(url, native, packs, table, SOURCE)
    before = everything(url, native)
    make_pack("de", seed=1).save(packs["de"])
    seen.texts.clear()
    done = index_captions(url, native, packs, table, SOURCE)
    assert done.encoded == {IMAGES: 0, CAPTIONS: 6}
    assert sorted(seen.texts) == [f"ein Hund {i}" for i in range(6)]
    after = everything(url, native)
    changed = {key[1].language for key in after if after[key] != before[key]}
    assert changed == {"de"}


def test_a_pack_whose_card_alone_changed_encodes_nothing(
    native: Native, packs: dict[str, Path], table: pa.Table, tmp_path: Path
) -> None:
    url = f"edge:{tmp_path / 'index'}"
    index_captions(url, native, packs, table, SOURCE)
    card = packs["de"] / "card.json"
    card.write_text(card.read_text().replace('"metrics": {', '"metrics": {"AR": 50', 1))
    assert index_captions(url, native, packs, table, SOURCE).encoded[CAPTIONS] == 0


def test_a_pack_that_was_never_saved_encodes_every_time(
    native: Native, make_pack: MakePack, table: pa.Table, tmp_path: Path
) -> None:
    url, pack = f"edge:{tmp_path / 'index'}", {"de": make_pack("de")}
    for _ in range(2):
        done = index_captions(url, native, pack, table, SOURCE)
    assert done.encoded == {IMAGES: 0, CAPTIONS: 6}


def test_points_without_a_hash_are_encoded_once(
    url: str, native: Native, packs: dict[str, Path], table: pa.Table
) -> None:
    """As mla-ray wrote them before, and as HTTP ingest writes them."""
    entries = dict.fromkeys(entries_of(table, SOURCE))
    for name in (IMAGES, CAPTIONS):
        these = [entry for entry in entries if bool(entry.language) == (name == CAPTIONS)]
        with CaptionIndex.open(url, space_of(native), name) as index:
            index.upsert(these, np.ones((len(these), native.dim), np.float32))
            assert set(index.hashes(these)) == {None}
    assert index_captions(url, native, packs, table, SOURCE).encoded == {IMAGES: 6, CAPTIONS: 12}
    assert index_captions(url, native, packs, table, SOURCE).encoded == {IMAGES: 0, CAPTIONS: 0}


def test_what_a_broken_off_run_wrote_is_not_encoded_again(
    native: Native, pngs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_ray.index.ingest.BATCH", 4)
    rows = [
        {"image_id": f"i{i}", "image": pngs[i], "language": "en", "caption": f"a dog {i}"}
        for i in range(12)
    ]
    table, url, whole = (
        pa.Table.from_pylist(rows),
        f"edge:{tmp_path / 'a'}",
        f"edge:{tmp_path / 'b'}",
    )
    texts_of, calls = Encoders.encode_captions, 0

    def killed(self: Encoders, language: str, texts: list[str]) -> Floats:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return texts_of(self, language, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Encoders, "encode_captions", killed)
        with pytest.raises(KeyboardInterrupt):
            index_captions(url, native, {}, table, SOURCE)
    done = index_captions(url, native, {}, table, SOURCE)
    assert done.encoded == {IMAGES: 0, CAPTIONS: 8}
    assert done.written == {IMAGES: 12, CAPTIONS: 12}
    index_captions(whole, native, {}, table, SOURCE)
    one, other = everything(url, native), everything(whole, native)
    assert {key: hash_ for key, (_, hash_) in one.items()} == {
        key: hash_ for key, (_, hash_) in other.items()
    }
    for key, (score, _) in one.items():
        assert score == pytest.approx(other[key][0], abs=1e-5)


def test_pictures_of_unchanged_images_stay_and_missing_ones_are_made(
    native: Native,
    table: pa.Table,
    pngs: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, store = f"edge:{tmp_path / 'index'}", PictureStore(str(tmp_path / "pictures"))
    english, put, kept = table.take(list(range(0, 12, 2))), PictureStore.put, list[str]()

    def spied(self: PictureStore, image_id: str, source: str, image: Image.Image) -> None:
        kept.append(image_id)
        put(self, image_id, source, image)

    monkeypatch.setattr(PictureStore, "put", spied)

    def index(rows: pa.Table) -> Indexed:
        kept.clear()
        return index_rows(url, Encoders(native, {}), rows, SOURCE, pictures=store)

    index(english)
    assert len(kept) == 6
    assert index(english).encoded[IMAGES] == 0
    assert kept == []
    store.remove("i3", SOURCE)
    index(english)
    assert kept == ["i3"]
    index(with_cell(english, "image", {1: pngs[9]}))
    assert kept == ["i1"]


def test_a_picture_that_was_made_before_a_kill_is_made_again(
    native: Native, table: pa.Table, pngs: list[bytes], tmp_path: Path
) -> None:
    """The points are written last, so a point tells that its picture is there."""
    url, store = f"edge:{tmp_path / 'index'}", PictureStore(str(tmp_path / "pictures"))
    keep_pictures(table, SOURCE, store, lambda progress: None)
    other = with_cell(table, "image", dict.fromkeys(range(12), pngs[11]))
    english = other.take(list(range(0, 12, 2)))
    index_rows(url, Encoders(native, {}), english, SOURCE, pictures=store)
    assert len({store.get(f"i{i}", SOURCE) for i in range(6)}) == 1


def test_an_actor_encodes_what_is_not_stored_and_tells_what_is(
    native: Native, native_folder: Path, packs: dict[str, Path], table: pa.Table, tmp_path: Path
) -> None:
    path, url = tmp_path / "photos.parquet", f"edge:{tmp_path / 'index'}"
    pq.write_table(with_cell(table, "caption", {0: "new"}), path)
    index_captions(url, native, packs, table, SOURCE)
    stored = StoredHashes.at(url, space_of(native), entries_of(table, SOURCE))
    languages = ["de", "en"]
    blocks = pa.concat_tables(_rows_of(pa.table({"file": [str(path)]}), None, languages, languages))
    folders = {language: str(folder) for language, folder in packs.items()}
    made = PointEncoder(str(native_folder), folders, SOURCE, stored)(blocks).to_pylist()
    assert len(made) == 18
    assert [point["caption"] for point in made if point["vector"]] == ["new"]
    assert not any(point["reason"] for point in made)
    empty = PointEncoder(str(native_folder), folders, SOURCE, StoredHashes())(blocks).to_pylist()
    assert all(point["vector"] for point in empty)


def test_the_hash_names_all_that_makes_a_point(
    native: Native,
    other_native: Native,
    packs: dict[str, Path],
    pngs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoders, other = Encoders(native, packs), Encoders(other_native, {})
    image, key = image_entry("1", "s"), key_of(pngs[0])
    english, german = (caption_entry("1", language, "a dog", "s") for language in ("en", "de"))
    hashes = [
        encoders.hash_of(image, key),
        encoders.hash_of(image, key_of(pngs[1])),
        encoders.hash_of(image_entry("1", "t"), key),
        other.hash_of(image, key),
        encoders.hash_of(english),
        encoders.hash_of(german),
        encoders.hash_of(caption_entry("1", "en", "a cat", "s")),
        other.hash_of(english),
    ]
    assert hashes[0] == Encoders(native, {}).hash_of(image, key)
    monkeypatch.setattr(encoders_module, "DECODING", 1)
    hashes.append(encoders.hash_of(image, key))
    assert encoders.hash_of(english) in hashes
    assert len(set(hashes)) == len(hashes)


def test_a_set_of_hashes_has_exactly_its_own() -> None:
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(15).hex() + "00" for _ in range(100)]  # they end in a zero byte
    stored = StoredHashes([*hashes[:50], None, *hashes[:50], None])
    assert stored.lacking == 2
    assert all(hash_ in stored for hash_ in hashes[:50])
    assert not any(hash_ in stored for hash_ in [*hashes[50:], "ff" * 16, "00" * 16, None])
    assert hashes[0] not in StoredHashes()


# Runs the command `mla` with its arguments and prints whether that took a model.
RUN = """
import sys
from mla_ray.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""


def test_nothing_is_loaded_if_nothing_has_to_be_encoded(
    mla: Mla, native_folder: Path, table: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "photos.parquet")
    index = ["--index", f"edge:{tmp_path / 'index'}", "--native", str(native_folder), "--json"]
    indexing = ["index", *index, "--captions", str(tmp_path / "photos.parquet"), "--language", "en"]
    first = mla(*indexing)
    assert first.code == 0, first.err
    assert isinstance(first.json, dict)
    assert min(first.json["encoded"].values()) > 0
    upkeep = ["index", *index, "--delete", "--image-id", "i1", "--optimize"]
    printed = []
    for command in (indexing, upkeep):
        run = subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        *lines, torch = run.stdout.splitlines()
        printed.append(json.loads("".join(lines)))
        assert torch == "False"
    assert printed[0]["encoded"] == {"images": 0, "captions": 0}
    assert printed[1]["removed"]["images"] == 1
