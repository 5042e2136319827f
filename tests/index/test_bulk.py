"""Promises of mla_ray.index.bulk: from any table the points of `index_captions`, however often.

In `make test` Ray does one table, and this process the others; in `make test-all` Ray does all.
"""

import os
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.problems import InvalidTable
from mla_ray.index.bulk import BLOCK, PointEncoder, _encode, index_table
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import ScoredEntry
from mla_ray.index.ingest import (
    index_captions,
    keep_pictures,
    space_of,
)
from mla_ray.index.picture_store import PictureStore
from mla_ray.index.server import connect
from mla_ray.index.sink import IndexSink
from mla_ray.index.stored import StoredHashes
from mla_ray.index.table_blocks import _rows_of, read_blocks
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.progress import Progress
from tests.support.natives import MakePack


@pytest.fixture
def pack(make_pack: MakePack, tmp_path: Path) -> tuple[LanguagePack, dict[str, Path]]:
    made = make_pack("de")
    made.save(tmp_path / "packs" / "de")
    return made, {"de": tmp_path / "packs" / "de"}


@pytest.fixture
def table(pngs: list[bytes], corpus: dict[str, list[str]]) -> pa.Table:
    """Every image with an English and a German caption."""
    rows = [
        (f"i{i:02}", png, language, corpus[language][i % 6] + f" {i}")
        for i, png in enumerate(pngs)
        for language in ("en", "de")
    ]
    return table_of(rows)


def table_of(rows: list[tuple[str | None, bytes | str | None, str | None, str | None]]) -> pa.Table:
    names = ("image_id", "image", "language", "caption")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def write(folder: Path, *tables: pa.Table) -> list[str]:
    """A file a table."""
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number}.parquet") for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    return paths


def found(url: str, native: Native, collection: str) -> list[ScoredEntry]:
    """Everything in a collection, in the order of one search."""
    with CaptionIndex.open(url, space_of(native), collection, create=False) as index:
        query, size = np.ones(native.dim, np.float32), index.count()
        pages = [index.search(query, 1000, offset=offset) for offset in range(0, size, 1000)]
        hits = [hit for page in pages for hit in page]
        assert len(hits) == size
        return hits


def assert_same(url: str, other: str, native: Native) -> None:
    for collection in (IMAGES, CAPTIONS):
        one, two = ({h.entry: h.score for h in found(u, native, collection)} for u in (url, other))
        assert one.keys() == two.keys()
        assert [one[entry] for entry in two] == pytest.approx(list(two.values()), abs=1e-4)


@pytest.mark.usefixtures("ray_cluster")
def test_its_points_are_those_of_index_captions(
    native: Native,
    native_folder: Path,
    pack: tuple[LanguagePack, dict[str, Path]],
    table: pa.Table,
    tmp_path: Path,
) -> None:
    """Images in several rows, several files and several languages; and everything twice."""
    plain, bulk = f"edge:{tmp_path / 'plain'}", f"edge:{tmp_path / 'bulk'}"
    index_captions(plain, native, {"de": pack[0]}, table, "emoji")
    tables = write(tmp_path / "tables", table.slice(0, 7), table.slice(7))
    seen: list[Progress] = []
    for encoded in (24, 0):
        done = index_table(bulk, str(native_folder), pack[1], tables, "emoji", seen.append)
        assert (done.encoded[CAPTIONS], done.encoded[IMAGES] > 0) == (encoded, encoded > 0)
        assert (done.written[CAPTIONS], done.rejected, done.reasons) == (24, 0, [])
        assert done.written[IMAGES] in (12, 13)  # one image has a row in both files
        assert_same(bulk, plain, native)
        assert (seen[-1].done, seen[-1].total) == (24, 24)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_tasks_that_write_through_the_sink_write_the_same(
    native: Native,
    native_folder: Path,
    pack: tuple[LanguagePack, dict[str, Path]],
    table: pa.Table,
    tmp_path: Path,
) -> None:
    """What a server gets; here one task at a time, as an `edge:` folder has one owner."""
    plain, sunk = f"edge:{tmp_path / 'plain'}", f"edge:{tmp_path / 'sunk'}"
    index_captions(plain, native, {"de": pack[0]}, table, "emoji")
    tables = write(tmp_path / "tables", table, table.slice(0, 2))
    sink = IndexSink(sunk, space_of(native))
    rows = read_blocks(tables, None, ["en", "de"], {"en", "de"})
    _encode(str(native_folder), pack[1], rows, "emoji", StoredHashes()).write_datasink(
        sink, concurrency=1, ray_remote_args={"num_cpus": 0}
    )
    assert (sink.indexed.written[CAPTIONS], sink.indexed.rejected) == (26, 0)
    assert_same(sunk, plain, native)


@pytest.mark.usefixtures("indexing")
def test_sync_removes_what_left_the_tables_and_keeps_what_cannot_be_read(
    native: Native, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    url, name = f"edge:{tmp_path / 'index'}", str(native_folder)
    store = PictureStore(str(tmp_path / "pictures"))
    before = table_of([(f"i{i}", pngs[i], "en", f"dog {i}") for i in range(6)])
    for source in ("ours", "theirs"):
        index_table(url, name, {}, write(tmp_path / "before", before), source)
        keep_pictures(before, source, store, lambda progress: None)
    after = table_of(
        [
            ("i0", pngs[0], "en", "dog 0"),
            ("i1", pngs[1], "en", "dog one"),  # mended
            ("i2", pngs[2][:100], "en", "dog 2"),  # an image that cannot be read this time
            ("i7", pngs[7], "en", "dog 7"),  # new
        ]
    )
    tables = write(tmp_path / "after", after.slice(0, 2), after.slice(2))
    done = index_table(url, name, {}, tables, "ours", sync=True, pictures=store)
    assert done.rejected == 1
    assert done.removed == {"images": 3, "captions": 4, "pictures": 3}
    images = {(hit.entry.source, hit.entry.id) for hit in found(url, native, IMAGES)}
    assert images == {
        *(("ours", id_) for id_ in ("i0", "i1", "i2", "i7")),
        *(("theirs", f"i{i}") for i in range(6)),
    }
    captions = {(hit.entry.source, hit.entry.caption) for hit in found(url, native, CAPTIONS)}
    assert captions == {
        *(("ours", text) for text in ("dog 0", "dog one", "dog 2", "dog 7")),
        *(("theirs", f"dog {i}") for i in range(6)),
    }
    assert [bool(store.get(f"i{i}", "ours")) for i in range(6)] == [True] * 3 + [False] * 3


@pytest.mark.server
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("variable", ["MLA_TEST_QDRANT_URL", "MLA_TEST_QDRANT_GRPC_URL"])
def test_sync_makes_a_server_equal_to_the_tables(
    native: Native, native_folder: Path, pngs: list[bytes], tmp_path: Path, variable: str
) -> None:
    url = os.environ.get(variable)
    if not url:
        pytest.skip(f"{variable} is not set")
    client = connect(url)

    def forget() -> None:
        for collection in client.get_collections().collections:
            if f"-{native.fingerprint[:12]}-v" in collection.name:
                client.delete_collection(collection.name)

    forget()
    try:
        before = table_of([(f"i{i}", pngs[i], "en", f"dog {i}") for i in range(6)])
        for source in ("ours", "theirs"):
            tables = write(tmp_path / "before", before)
            index_table(url, str(native_folder), {}, tables, source)
        tables = write(tmp_path / "after", before.slice(2), before.slice(3))
        done = index_table(url, str(native_folder), {}, tables, "ours", sync=True)
        assert set(done.encoded.values()) == {0}
        assert done.removed == {"images": 2, "captions": 2, "pictures": 0}
        done = index_table(url, str(native_folder), {}, tables, "ours", reencode=True)
        assert set(done.unchanged.values()) == {0}
        for collection in (IMAGES, CAPTIONS):
            ids = [(hit.entry.source, hit.entry.image_id) for hit in found(url, native, collection)]
            ours = [("ours", f"i{i}") for i in range(2, 6)]
            assert sorted(ids) == ours + [("theirs", f"i{i}") for i in range(6)]
    finally:
        forget()


@pytest.mark.usefixtures("indexing")
def test_a_bad_image_or_row_costs_its_rows_alone_and_is_reported(
    native: Native, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    url = f"edge:{tmp_path / 'index'}"
    (tmp_path / "drawing.png").write_bytes(pngs[1])
    rows = [
        ("good", pngs[0], "en", "a dog"),
        ("path", str(tmp_path / "drawing.png"), "en", "a cat"),
        ("broken", pngs[0][:200], "en", "grapes"),
    ]
    bad = [
        ("good", pngs[0], "en", " "),
        ("good", pngs[0], None, "no language"),
        (None, pngs[0], "en", "no image_id"),
    ]
    nowhere = [("missing", str(tmp_path / "nowhere.png"), "en", "a boat")]
    by_bytes = [row for row in rows + bad if isinstance(row[1], bytes)]
    by_path = [row for row in rows + nowhere if isinstance(row[1], str)]
    tables = write(tmp_path / "bytes", table_of(by_bytes))
    tables += write(tmp_path / "paths", table_of(by_path))
    done = index_table(url, str(native_folder), {}, tables, "test")
    assert {hit.entry.id for hit in found(url, native, IMAGES)} == {"good", "path"}
    captions = {hit.entry.caption for hit in found(url, native, CAPTIONS)}
    assert captions == {"a dog", "a cat"}
    assert done.rejected == len(done.reasons) == 5
    for named in (
        "bytes/0.parquet row 2: image of 'broken' is cut off",
        "bytes/0.parquet row 3: 'caption' is empty",
        "bytes/0.parquet row 4: 'language' is empty",
        "bytes/0.parquet row 5: 'image_id' is empty",
        "nowhere.png' is missing",
    ):
        assert sum(named in reason for reason in done.reasons) == 1, done.reasons


@pytest.mark.usefixtures("indexing")
def test_an_image_is_looked_for_beside_its_table_whose_language_is_said(
    native: Native,
    native_folder: Path,
    pack: tuple[LanguagePack, dict[str, Path]],
    pngs: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in the folder that a process works in, where another file may have its name.

    A table without a column of languages is in the one that was named, whatever packs there are.
    """
    folder, elsewhere = tmp_path / "tables", tmp_path / "elsewhere"
    for place, png in ((folder, pngs[0]), (elsewhere, pngs[1])):
        (place / "pictures").mkdir(parents=True)
        (place / "pictures" / "a.png").write_bytes(png)
    (folder / "captions.csv").write_text("image_id,image,caption\n7,pictures/a.png,a dog\n")
    monkeypatch.chdir(elsewhere)
    url = f"edge:{tmp_path / 'index'}"
    table = str(folder / "captions.csv")
    done = index_table(url, str(native_folder), pack[1], [table], "test", language="en")
    assert (done.written, done.rejected) == ({IMAGES: 1, CAPTIONS: 1}, 0)
    features = native.encode_image(native.preprocess(Image.open(BytesIO(pngs[0])))[None])
    with CaptionIndex.open(url, space_of(native), IMAGES, create=False) as index:
        (hit,) = index.search(features[0].detach().numpy(), 1)
    assert hit.entry.image_id == "7"
    assert [hit.entry.language for hit in found(url, native, CAPTIONS)] == ["en"]
    assert hit.score == pytest.approx(1, abs=1e-5)


def test_two_images_of_one_id_are_refused(
    native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    rows = [("a", pngs[0], "en", "a dog"), ("a", pngs[1], "en", "a cat"), ("b", pngs[1], "en", "x")]
    tables = write(tmp_path / "tables", table_of(rows))
    blocks = pa.concat_tables(_rows_of(pa.table({"file": tables}), None, ["en"], ["en"]))
    made = PointEncoder(str(native_folder), {}, "test", StoredHashes())(blocks)
    refused = made["reason"].drop_null().to_pylist()
    assert len(refused) == 2
    assert all("has another image" in reason for reason in refused)
    good = made.filter(pc.is_null(made["reason"]))
    assert Counter(good["collection"].to_pylist()) == {IMAGES: 1, CAPTIONS: 1}
    assert set(good["image_id"].to_pylist()) == {"b"}


@pytest.mark.usefixtures("indexing")
def test_a_run_that_was_broken_off_is_run_again(
    native: Native, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    plain, bulk = f"edge:{tmp_path / 'plain'}", f"edge:{tmp_path / 'bulk'}"
    halves = [
        table_of([(f"i{i % 12}", pngs[i % 12], "en", f"{part} {i}") for i in range(BLOCK)])
        for part in ("dog", "cat")
    ]
    tables = write(tmp_path / "tables", *halves)

    def break_off(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_table(bulk, str(native_folder), {}, tables, "test", break_off)
    with CaptionIndex.open(bulk, space_of(native), CAPTIONS, create=False) as index:
        assert 0 < index.count() < 2 * BLOCK
    index_table(bulk, str(native_folder), {}, tables, "test")
    index_captions(plain, native, {}, pa.concat_tables(halves), "test")
    assert_same(bulk, plain, native)


def test_what_cannot_succeed_is_refused_before_anything_is_made(
    native_folder: Path, pack: tuple[LanguagePack, dict[str, Path]], table: pa.Table, tmp_path: Path
) -> None:
    index, name = f"edge:{tmp_path / 'index'}", str(native_folder)
    tables = write(tmp_path / "tables", table, table.drop_columns("image"))
    with pytest.raises(KeyError, match="no pack for de"):
        index_table(index, name, {}, tables[:1], "emoji")
    with pytest.raises(InvalidTable, match="no column 'image'"):
        index_table(index, name, pack[1], tables, "emoji")
    with pytest.raises(ValueError, match="pack for 'de', not for 'sw'"):
        index_table(index, name, {"sw": pack[1]["de"]}, tables[:1], "emoji")
    with pytest.raises(InvalidTable, match="no such file"):
        index_table(index, name, pack[1], [str(tmp_path / "none.parquet")], "emoji")
    assert not (tmp_path / "index").exists()
