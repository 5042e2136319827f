"""Promises of evaluation.captions: a table's images are checked and encoded where they are."""

import json
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.feature_store import Features, encode_images
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import read_captions
from mla_ray.evaluation import captions, evaluation
from mla_ray.evaluation.captions import CaptionTable
from mla_ray.evaluation.evaluation import Gallery
from mla_ray.model.native import Native
from mla_ray.runtime.progress import Progress

Row = dict[str, object]


def rows_of(pngs: list[bytes]) -> list[Row]:
    """Two captions of each of six images, in two languages; of others one of split train."""
    return [
        {
            "image_id": f"i{n % 6}",
            "image": pngs[n % 6],
            "language": "de" if n < 6 else "fr",
            "caption": f"caption {n}",
            "split": "test",
        }
        for n in range(12)
    ] + [{"image_id": "x", "image": pngs[7], "language": "de", "caption": "x", "split": "train"}]


def as_parquet(folder: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "captions.parquet", row_group_size=4)
    return folder / "captions.parquet"


def as_jsonl(folder: Path, rows: list[Row]) -> Path:
    """With the images in files of their own, one for each id."""
    lines = []
    for row in rows:
        (folder / f"{row['image_id']}.png").write_bytes(row["image"])  # type: ignore[arg-type]
        lines.append(json.dumps(row | {"image": f"{row['image_id']}.png"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder / "captions.jsonl"


@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
@pytest.mark.parametrize("languages", [["de"], ["fr", "de"]])
def test_rows_and_features_are_those_of_the_table_in_memory(
    write: object, languages: list[str], native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    path = write(tmp_path, rows_of(pngs))  # type: ignore[operator]
    steps: list[Progress] = []
    table = CaptionTable.read(path, languages)
    gallery = table.gallery(native, steps.append)
    whole = read_captions(path, split="test").table
    whole = whole.filter(pa.compute.is_in(whole["language"], pa.array(languages)))
    for column in ("image_id", "language", "caption"):
        assert table.rows[column].to_pylist() == whole[column].to_pylist()
    expected = Gallery.of(native, whole)
    assert gallery.ids == expected.ids == [f"i{n}" for n in range(6)]
    np.testing.assert_array_equal(gallery.features, expected.features)
    assert steps[-1] == Progress("images", 6, 6)


def test_captions_that_are_alike_are_kept(pngs: list[bytes], tmp_path: Path) -> None:
    rows = rows_of(pngs)
    table = CaptionTable.read(as_parquet(tmp_path, [*rows, rows[0]]), ["de"])
    assert table.rows["caption"].to_pylist().count("caption 0") == 2


def test_all_that_is_wrong_is_refused_at_once_and_by_its_row(
    native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    rows = rows_of(pngs)
    rows[1]["image"] = b"no image"
    rows[3]["caption"] = ""
    rows.append(rows[4] | {"caption": "another", "image": pngs[9]})
    path = as_parquet(tmp_path, rows)
    with pytest.raises(InvalidTable) as refused:
        CaptionTable.read(path, ["de"])
    assert [problem.row for problem in refused.value.problems] == [2, 4, 14]
    image, caption, other = map(str, refused.value.problems)
    assert f"{path} row 2: image of 'i1' is" in image
    assert "'caption' is empty" in caption
    assert "image_id 'i4' has another image in row 5" in other
    table = CaptionTable.read(path, ["de"], skip_invalid=True)
    assert table.dropped == len(table.problems) == 3
    assert table.gallery(native).ids == ["i0", "i2", "i4", "i5"]


def test_an_image_whose_first_row_is_bad_is_taken_from_another(
    native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    rows = rows_of(pngs)
    rows[0]["image"] = b"no image"
    rows.append(rows[0] | {"caption": "another", "image": pngs[0]})
    table = CaptionTable.read(as_parquet(tmp_path, rows), ["de"], skip_invalid=True)
    gallery = table.gallery(native)
    np.testing.assert_allclose(
        gallery.features[gallery.ids.index("i0")], encode_images(native, pngs[:1])[0], atol=1e-5
    )


def test_missing_files_and_languages_are_named(pngs: list[bytes], tmp_path: Path) -> None:
    path = as_jsonl(tmp_path, rows_of(pngs))
    with pytest.raises(InvalidTable, match="no row of language cs; there is de, fr"):
        CaptionTable.read(path, ["de", "fr", "cs"])
    with pytest.raises(InvalidTable, match=r"no row of language 'cs'; rows found: de \(7\)"):
        CaptionTable.read(path, ["cs"])
    (tmp_path / "i3.png").unlink()
    with pytest.raises(InvalidTable, match=r"line 4: image 'i3\.png' is missing"):
        CaptionTable.read(path, ["de"])


@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(
    write: Callable[[Path, list[Row]], Path], pngs: list[bytes], tmp_path: Path
) -> None:
    path = write(tmp_path, rows_of(pngs)[-1:] * 3)
    for languages in (["de"], ["de", "en"]):
        with pytest.raises(InvalidTable) as refused:
            CaptionTable.read(path, languages)
        assert str(refused.value).splitlines()[0] == (
            f"{path}: no row of split 'test' in {', '.join(languages)}; rows found: train (3); "
            "name one of these splits (--split), or add rows of this one"
        )
    with pytest.raises(InvalidTable, match=r"no row of language 'cs'; rows found: de \(3\)"):
        CaptionTable.read(path, ["cs"])


def test_images_with_several_ids_are_told(
    pngs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(captions.log, "warning", lambda line, *of: told.append(line % of))
    rows = rows_of(pngs)
    CaptionTable.read(as_parquet(tmp_path, rows), ["de"])
    assert not told
    double = rows[2] | {"image_id": "again"}
    path = as_parquet(tmp_path, [*rows, double])
    CaptionTable.read(path, ["de"])
    (line,) = told
    assert line.startswith(f"{path}: 1 images have several ids, the first is 'i2' and 'again';")


def test_a_table_that_changed_is_not_measured(
    native: Native, pngs: list[bytes], tmp_path: Path
) -> None:
    table = CaptionTable.read(as_parquet(tmp_path, rows_of(pngs)), ["de"])
    as_parquet(tmp_path, rows_of(pngs)[:3])
    with pytest.raises(ValueError, match="found 3 images, expected 6"):
        table.gallery(native)


def test_no_more_than_a_batch_of_images_is_in_memory(
    native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, rows = np.random.default_rng(0), []
    for n in range(48):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append(
            {
                "image_id": f"i{n}",
                "image": buffer.getvalue(),
                "language": "de",
                "caption": f"{n}",
                "split": "test",
            }
        )
    path, size = as_jsonl(tmp_path, rows), sum(len(row["image"]) for row in rows)
    del rows
    batches: list[int] = []

    def encode(native: Native, images: list[bytes], progress: object) -> Features:
        batches.append(len(images))
        return np.zeros((len(images), native.dim), np.float32)

    monkeypatch.setattr(evaluation, "BATCH", 4)
    monkeypatch.setattr(evaluation, "encode_images", encode)
    tracemalloc.start()
    CaptionTable.read(path, ["de"]).gallery(native)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batches == [4] * 12
    assert most < size / 4  # 4 of 48 images, and what is read of the table
