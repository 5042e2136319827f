"""Promises of data.table_tmx: every unit is its pairs, without markup."""

from pathlib import Path

import pytest

from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import PAIRS, refusal, text

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><header srclang="en"/><body>'


def unit(**segments: str) -> str:
    variants = "".join(
        f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>'
        for code, text in segments.items()
    )
    return f"<tu><prop type='x'>a</prop>{variants}</tu>\n"


def tmx(folder: Path, *units: str) -> Path:
    return text(folder / "p.tmx", f"{HEAD}{''.join(units)}</body></tmx>")


def test_units_are_pairs(tmp_path: Path) -> None:
    path = tmx(tmp_path, unit(de="Hund", en="dog"), unit(EN_us="cat", fr="chat"))
    assert read_pairs(path).table.to_pylist() == PAIRS
    assert read_pairs(path, language="fr").table.to_pylist() == PAIRS[1:]


def test_markup_is_left_out_and_what_it_marks_stays(tmp_path: Path) -> None:
    source = 'a <bpt i="1">&lt;b&gt;</bpt>red<ept i="1">&lt;/b&gt;</ept> <hi>dog</hi> &amp; cat'
    path = tmx(tmp_path, unit(en=source, de="H<ph>%s</ph>und"))
    assert read_pairs(path).table.to_pylist() == [
        {"source": "a red dog & cat", "target": "Hund", "language": "de"}
    ]


def test_units_that_are_none_are_refused_by_their_number(tmp_path: Path) -> None:
    path = tmx(tmp_path, unit(en="dog", de="Hund"), unit(de="Ei"), unit(en="egg", de=" "))
    assert refusal(read_pairs, path) == [
        "p.tmx row 2: 'translation' has de; English and another are needed; "
        "drop the row or pass --skip-invalid",
        "p.tmx row 3: 'target' is empty; drop the row or pass --skip-invalid",
    ]


def test_what_breaks_off_and_what_grows_without_bound_is_refused(tmp_path: Path) -> None:
    (said,) = refusal(read_pairs, text(tmp_path / "p.tmx", HEAD + unit(en="dog", de="Hund")))
    assert said.startswith("p.tmx: not XML, or truncated")
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE tmx [<!ENTITY e0 "lol">{entities}]><tmx><body><tu>&e11;</tu></body></tmx>'
    (said,) = refusal(read_pairs, text(tmp_path / "p.tmx", bomb))
    assert said.startswith("p.tmx: not XML, or truncated")
    with pytest.raises(ValueError, match="no column 'image_id'"):
        read_captions(tmx(tmp_path, unit(en="dog", de="Hund")), language="de")
