"""Promises of `mla collection`, on an index that `mla index` wrote."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.commands import Mla


@pytest.fixture
def index(mla: Mla, native_folder: Path, pngs: list[bytes], tmp_path: Path) -> str:
    rows = {
        "image_id": [f"p{number}" for number in range(12)],
        "image": pngs,
        "language": ["en"] * 12,
        "caption": [f"picture {number}" for number in range(12)],
    }
    pq.write_table(pa.table(rows), tmp_path / "captions.parquet")
    table = tmp_path / "captions.parquet"
    written = mla("index", "--captions", table, "--index", "edge:one", "--native", native_folder)
    assert written.code == 0, written.err
    return "edge:one"


def found(mla: Mla, index: str, native_folder: Path) -> object:
    search = ["search", "a dog", "--language", "en", "--find", "captions", "--json"]
    run = mla(*search, "--index", index, "--native", native_folder)
    assert run.code == 0, run.err
    return run.json


def test_a_copy_and_a_restored_snapshot_answer_as_the_first(
    mla: Mla, index: str, native_folder: Path
) -> None:
    before = found(mla, index, native_folder)
    assert before
    counts = {"points": 12, "written": 12, "checked": 12}
    copied = mla("collection", "copy", index, "edge:two", "--json")
    assert copied.json == {"images": counts, "captions": counts}
    assert "captions" in copied.err  # progress
    again = mla("collection", "copy", index, "edge:two", "--collection", "images")
    assert again.out == "images: 12 points, 0 written, 12 compared\n"
    saved = mla("collection", "snapshot", "edge:two", "saved", "--json")
    assert saved.json == {"images": 12, "captions": 12}
    restored = mla("collection", "restore", "saved", "edge:three", "--json")
    assert restored.json == {"images": counts, "captions": counts}
    for other in ("edge:two", "edge:three"):
        assert found(mla, other, native_folder) == before


def test_what_is_wrong_is_one_message(mla: Mla, index: str, tmp_path: Path) -> None:
    run = mla("collection", "copy", "edge:nothing", "edge:two")
    assert (run.code, run.out) == (1, "")
    assert "edge:nothing has no collection images or captions" in run.err
    assert mla("collection", "snapshot", index, "saved").code == 0
    part = tmp_path / "saved" / "images-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    run = mla("collection", "restore", "saved", "edge:two")
    assert run.code == 1
    assert "images-00000.parquet is damaged" in run.err
