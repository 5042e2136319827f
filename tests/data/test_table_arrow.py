"""Promises of data.table_arrow: what Polars and `datasets` write is read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import PAIRS, refusal

TRANSLATIONS = [
    {"translation": {"de": "Hund", "en": "dog", "fr": None}},
    {"translation": {"de": None, "en": "cat", "fr": "chat"}},
]


def saved(folder: Path, *tables: pa.Table) -> Path:
    """A folder as `datasets` saves a table, in one Arrow file for each of `tables`."""
    folder.mkdir()
    names = [f"data-{n:05}-of-{len(tables):05}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_views_of_strings_and_bytes_are_text_and_images(tmp_path: Path, pngs: list[bytes]) -> None:
    cells = {key: [row[key] for row in PAIRS] for key in PAIRS[0]}
    views = pa.table({key: pa.array(texts, pa.string_view()) for key, texts in cells.items()})
    pq.write_table(views, tmp_path / "p.parquet")
    assert pq.read_schema(tmp_path / "p.parquet").field("source").type == pa.string_view()
    assert read_pairs(tmp_path / "p.parquet").table.to_pylist() == PAIRS
    image = pa.array([pngs[0]], pa.binary_view())
    captions = pa.table({"image_id": [7], "image": image, "caption": ["Hund"]})
    pq.write_table(captions, tmp_path / "c.parquet")
    (row,) = read_captions(tmp_path / "c.parquet", language="de").table.to_pylist()
    assert (row["image_id"], row["image"], row["caption"]) == ("7", pngs[0], "Hund")


def test_a_translation_is_a_pair_for_each_other_language(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TRANSLATIONS), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet").table.to_pylist() == PAIRS
    german = read_pairs(tmp_path / "p.parquet", language="de")
    assert german.table.to_pylist() == PAIRS[:1]


def test_a_translation_without_english_is_refused_by_its_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([TRANSLATIONS[0], {"translation": {"de": "Ei", "en": None}}])
    pq.write_table(table, tmp_path / "p.parquet")
    assert refusal(read_pairs, tmp_path / "p.parquet") == [
        "p.parquet row 2: 'translation' has de; English and another are needed; "
        "drop the row or pass --skip-invalid"
    ]


def test_what_datasets_saved_is_one_table(tmp_path: Path) -> None:
    tables = (pa.Table.from_pylist([row]) for row in TRANSLATIONS)
    assert read_pairs(saved(tmp_path / "de-en", *tables)).table.to_pylist() == PAIRS
    broken = tmp_path / "de-en" / "data-00001-of-00002.arrow"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InvalidTable, match=r"data-00001-of-00002\.arrow: not a valid Arrow file"):
        read_pairs(tmp_path / "de-en")


def test_images_of_datasets_are_their_bytes(tmp_path: Path, pngs: list[bytes]) -> None:
    rows = [
        {"image_id": n, "image": {"bytes": png, "path": "a.png"}, "caption": f"Hund {n}"}
        for n, png in enumerate(pngs[:3])
    ]
    folder = saved(tmp_path / "captions", pa.Table.from_pylist(rows))
    read = read_captions(folder, language="de").table
    assert read["image"].to_pylist() == pngs[:3]
    assert read["image_id"].to_pylist() == ["0", "1", "2"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert read_captions(tmp_path / "c.parquet", language="de").table == read


def test_several_splits_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        InvalidTable, match=r"holds several tables; give one of .*all/train, .*test"
    ):
        read_pairs(folder)


def test_a_file_of_arrow_is_read_as_a_stream_is(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(PAIRS)
    with pa.ipc.new_file(tmp_path / "p.arrow", table.schema) as file:
        file.write_table(table)
    assert read_pairs(tmp_path / "p.arrow").table.to_pylist() == PAIRS
