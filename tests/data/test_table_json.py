"""Promises of data.table_json: arrays and lines of objects are one table, told where broken."""

import json
from pathlib import Path

import pytest

from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import PAIRS, refusal, text


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n \n"])
def test_an_array_of_objects_is_a_table(tmp_path: Path, indent: int | None, mark: str) -> None:
    path = text(tmp_path / "p.json", mark + json.dumps(PAIRS, indent=indent))
    assert read_pairs(path).table.to_pylist() == PAIRS


def test_lines_are_read_whatever_the_ending(tmp_path: Path) -> None:
    path = text(tmp_path / "p.json", "".join(json.dumps(row) + "\n" for row in PAIRS))
    assert read_pairs(path).table.to_pylist() == PAIRS


def test_rows_of_an_array_count_from_one(tmp_path: Path) -> None:
    rows = [PAIRS[0], 7, PAIRS[0] | {"target": 3}, PAIRS[0] | {"target": ""}]
    assert refusal(read_pairs, text(tmp_path / "p.json", json.dumps(rows, indent=1))) == [
        "p.json row 2: a int where an object is needed; drop the row or pass --skip-invalid",
        "p.json row 3: 'target' is of type int, not text; drop the row or pass --skip-invalid",
        "p.json row 4: 'target' is empty; drop the row or pass --skip-invalid",
    ]


def test_half_a_character_is_refused_and_none_becomes_another(tmp_path: Path) -> None:
    rows = [PAIRS[0] | {"target": "Hu\ud800d"}, PAIRS[0] | {"target": "🐶"}]
    path = text(tmp_path / "p.json", json.dumps(rows))  # both as escapes
    (said,) = refusal(read_pairs, path)
    assert said.startswith(
        "p.json row 1: 'target' holds half a character (a lone surrogate, U+D800)"
    )
    read = read_pairs(path, skip_invalid=True)
    assert read.table["target"].to_pylist() == ["🐶"]


@pytest.mark.parametrize("content", ['[{"source": "a"', '[{"source": "a"} {}]', "[{}] x", "[NaN]"])
def test_an_array_that_is_broken_is_refused(tmp_path: Path, content: str) -> None:
    (said,) = refusal(read_pairs, text(tmp_path / "p.json", content), skip_invalid=True)
    assert said.startswith("p.json: not JSON, or truncated, after row ")


def test_an_object_around_the_rows_is_told_how_to_be_without(tmp_path: Path) -> None:
    content = json.dumps({"data": PAIRS}, indent=1)
    (said,) = refusal(read_pairs, text(tmp_path / "p.json", content))
    assert "neither an array of rows nor one row per line; `jq -c '.data[]'`" in said


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_translation_is_a_pair_for_each_other_language(tmp_path: Path, ending: str) -> None:
    rows: list[dict[str, object]] = [
        {"id": 1, "translation": {"en": "dog", "de": "Hund", "fr": "chien"}},
        {"id": 2, "translation": {"en_US": "cat", "pt_BR": "gato"}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = text(tmp_path / f"p.{ending}", json.dumps(rows) if ending == "json" else lines)
    found = [tuple(row.values()) for row in read_pairs(path).table.to_pylist()]
    assert found == [("dog", "Hund", "de"), ("dog", "chien", "fr"), ("cat", "gato", "pt-BR")]
    assert read_pairs(path, language="fr").table["target"].to_pylist() == ["chien"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"de": "Hund"}, "'translation' has de; English and another are needed"),
        ({"en": "dog"}, "'translation' has en; English and another are needed"),
        ({"en": "dog", "de": 7}, "'translation' 'de' is of type int, not text"),
        ({}, "'translation' has nothing; English and another are needed"),
        ("dog", "'translation' is of type str, not texts by language"),
        (None, "'translation' is of type NoneType, not texts by language"),
    ],
)
def test_a_translation_that_is_none_is_refused(tmp_path: Path, cell: object, said: str) -> None:
    path = text(tmp_path / "p.jsonl", json.dumps({"translation": cell}))
    assert (
        refusal(read_pairs, path)[0]
        == f"p.jsonl line 1: {said}; drop the row or pass --skip-invalid"
    )


def test_a_number_is_an_image_id(tmp_path: Path, pngs: list[bytes]) -> None:
    (tmp_path / "a.png").write_bytes(pngs[0])
    rows = [{"image_id": 139, "image": "a.png", "caption": "Hund"}]
    path = text(tmp_path / "c.json", json.dumps(rows))
    assert read_captions(path, language="de").table["image_id"].to_pylist() == ["139"]
