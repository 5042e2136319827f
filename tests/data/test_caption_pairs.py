"""Promises of mla_ray.data.caption_pairs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.caption_pairs import pairs_of_captions
from mla_ray.data.problems import InvalidTable

TABLE = """image_id,language,caption,split
1,en,a dog,train
1,en,a black dog,train
1,de-AT,ein Hund,train
1,de,ein schwarzer Hund,train
1,de,noch ein Hund,train
2,de,eine Katze,train
3,en,a bird,train
4,en,a fish,test
4,de,ein Fisch,test
5,fr,une vache,train
"""


def test_the_nth_caption_goes_with_the_nth_in_english(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(TABLE)
    path = pairs_of_captions(tmp_path / "c.csv", "DE", tmp_path / "pairs")
    assert pq.read_table(path).to_pylist() == [
        {"source": "a dog", "target": "ein Hund", "language": "de"},
        {"source": "a black dog", "target": "ein schwarzer Hund", "language": "de"},
        {"source": "a dog", "target": "noch ein Hund", "language": "de"},
    ]
    assert pairs_of_captions(tmp_path / "c.csv", "de", tmp_path / "pairs") == path
    (tmp_path / "c.csv").write_text(TABLE.replace("noch", "schon wieder"))
    assert pairs_of_captions(tmp_path / "c.csv", "de", tmp_path / "pairs") != path


def test_two_pictures_of_the_same_make_one_pair(tmp_path: Path) -> None:
    rows = ["1,en,a dog", "1,de,ein Hund", "2,en,a dog", "2,de,ein Hund", "2,de,ein Tier"]
    (tmp_path / "c.csv").write_text("\n".join(["image_id,language,caption", *rows, ""]))
    path = pairs_of_captions(tmp_path / "c.csv", "de", tmp_path)
    assert pq.read_table(path)["target"].to_pylist() == ["ein Hund", "ein Tier"]


def test_a_later_part_that_changes_is_another_table(tmp_path: Path) -> None:
    def write(number: int, caption: str) -> None:
        columns = {"image_id": ["1", "1"], "language": ["en", "de"], "caption": ["dog", caption]}
        (tmp_path / "c").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "c" / f"{number}.parquet")

    write(1, "Hund")
    for caption in ("ein Hund", "ein kleiner Hund"):
        write(2, caption)
        path = pairs_of_captions(tmp_path / "c", "de", tmp_path / "pairs")
        assert pq.read_table(path)["target"].to_pylist() == ["Hund", caption]


def test_a_table_without_splits_is_all_for_training(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image_id,language,caption\n1,en,dog\n1,sw,mbwa\n")
    path = pairs_of_captions(tmp_path / "c.csv", "sw", tmp_path)
    assert pq.read_table(path).num_rows == 1


def test_captions_of_one_language_are_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(TABLE)
    with pytest.raises(InvalidTable, match="both 'en' and 'fr'"):
        pairs_of_captions(tmp_path / "c.csv", "fr", tmp_path)
