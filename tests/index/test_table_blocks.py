"""Promises of index.table_blocks, and of whoever else reads a caption table: all read the same."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.corpus import Corpus
from mla_ray.data.decoded_images import decode
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import Stream, read_captions
from mla_ray.evaluation.captions import CaptionTable
from mla_ray.index.bulk import PointEncoder
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import index_captions, keys_of, space_of
from mla_ray.index.stored import StoredHashes
from mla_ray.index.table_blocks import BlockRow, _rows_of, survey
from mla_ray.model.native import Native
from mla_ray.runtime.storage import as_path

UNTIDY = {
    "image_id": " 1 ",
    "image": "picture.png",
    "language": " EN ",
    "caption": " \ufeffcafe\u0301 au lait\u00a0",
    "split": " train ",
}
TIDY = ("1", "en", "caf\u00e9 au lait")
CAPTION = Entry("1#e4ff2ba561e54dd873852e48975ff4e0", "1", "en", "caf\u00e9 au lait", "menu")
IMAGE = Entry("1", "1", "", "", "menu")


@pytest.fixture(params=["csv", "tsv", "jsonl", "parquet"])
def table(request: pytest.FixtureRequest, pngs: list[bytes], tmp_path: Path) -> Path:
    """One row as people write it, in every format; its picture is beside it."""
    (tmp_path / "picture.png").write_bytes(pngs[0])
    path = tmp_path / f"menu.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist([UNTIDY]), path)
    elif request.param == "jsonl":
        path.write_text(json.dumps(UNTIDY) + "\n")
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, "excel" if request.param == "csv" else "excel-tab")
            writer.writerows([UNTIDY.keys(), UNTIDY.values()])
    return path


def rows_of(rows: pa.Table) -> list[tuple[str, str, str]]:
    columns = (rows[name].to_pylist() for name in ("image_id", "language", "caption"))
    return list(zip(*columns, strict=True))


def blocks_of(path: Path, language: str | None = None) -> Iterator[pa.Table]:
    return _rows_of(pa.table({"file": [str(path)]}), language, ["en"], ["en"])


READERS: dict[str, Callable[[Path], pa.Table]] = {
    "mla index": lambda path: read_captions(path).table,
    "mla evaluate": lambda path: CaptionTable.read(path, ["en"], split="train").rows,
    "training": lambda path: pa.concat_tables(Stream.captions([path], "en", "train")),
    "jobs.index": lambda path: next(
        _rows_of(pa.table({"file": [str(path)]}), None, ["en"], ["en"])
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_tidies_texts_alike(table: Path, reader: str) -> None:
    assert rows_of(READERS[reader](table)) == [TIDY]


def test_fine_tuning_and_counts_of_splits_tidy_them_too(
    native: Native, table: Path, tmp_path: Path
) -> None:
    decode(native, table, "train", as_path(tmp_path / "decoded"))
    rows = pq.read_table(tmp_path / "decoded" / "rows.parquet")
    assert rows["caption"].to_pylist() == [TIDY[2]]
    assert Corpus("en", [], table).splits() == {"train": 1}
    assert survey([str(table)], None, ["en"]) == ({"en"}, 1)


def test_a_caption_has_one_entry_whoever_indexes_it(
    native: Native, native_folder: Path, table: Path, tmp_path: Path
) -> None:
    """In memory, as blocks, and as what a sync keeps."""
    url = f"edge:{tmp_path / 'index'}"
    index_captions(url, native, {}, read_captions(table).table, "menu")
    for collection, entry in ((IMAGES, IMAGE), (CAPTIONS, CAPTION)):
        with CaptionIndex.open(url, space_of(native), collection, create=False) as index:
            assert list(index.entries()) == [entry]
    block = next(blocks_of(table))
    points = PointEncoder(str(native_folder), {}, "menu", StoredHashes())(block)
    assert points["reason"].to_pylist() == [None, None]
    names = ("id", "image_id", "language", "caption", "source")
    entries = {Entry(*cells) for cells in zip(*(points[n].to_pylist() for n in names), strict=True)}
    assert entries == {IMAGE, CAPTION}
    assert keys_of([table], "menu", None, ["en"]) == {IMAGE.key, CAPTION.key}


def test_a_row_of_no_use_says_where_and_why(pngs: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image_id,image,caption\n1,a.png,dog\n2,b.png,\n")
    blocks = list(blocks_of(tmp_path / "t.csv", "en"))
    (row,) = BlockRow.all_of(pa.concat_tables(blocks))
    assert (row.image_id, row.image, row.folder) == ("1", "a.png", str(tmp_path))
    assert row.place == f"{tmp_path / 't.csv'} line 2"
    (fault,) = pa.concat_tables(blocks)["fault"].drop_null().to_pylist()
    assert fault.startswith(f"{tmp_path / 't.csv'} line 3: 'caption' is empty")
    with pytest.raises(InvalidTable, match="no such file"):
        survey([str(tmp_path / "none.csv")], None, [])
