"""Promises of data.quoted_tsv: TSV as pandas and Excel write it, and TSV that quotes nothing."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mla_ray.data.quoted_tsv import tsv_is_quoted
from mla_ray.data.table_reader import read_pairs

HEADER = "source\ttarget\tlanguage\n"


def pairs(path: Path) -> list[tuple[str, str]]:
    table = read_pairs(path).table
    return list(zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    "rows",
    [
        'a dog\tein "Hund"\tde\n',  # quotes in a text
        '"Hello," he said\t"Hallo", sagte er\tde\n',  # at its beginning
        '"Hello"\t"Hallo"\tde\n',  # around all of it: pandas would not have quoted that
        '12" disc\t12"-Platte\tde\n',  # one alone
        '"never closed\tnie zu\tde\nb\tc\tde\n',
    ],
)
def test_quotes_that_are_text_stay(rows: str, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(HEADER + rows)
    expected = [tuple(line.split("\t")[:2]) for line in rows.splitlines()]
    assert pairs(tmp_path / "p.tsv") == expected
    assert not tsv_is_quoted((HEADER + rows).splitlines(keepends=True))


@pytest.mark.parametrize("seed", range(6))
def test_what_pandas_writes_is_read_back(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    parts = ['"', '""', "a", "Hund", "\t", "\n", " ", "'", ",", "«", "ß"]
    rows = []
    for number in range(40):
        source, target = (
            "".join(rng.choice(parts, size=rng.integers(1, 6))).strip() for _ in range(2)
        )
        rows.append((f"{number} {source}", f"{target} {number}", "de"))
    rows.append(('"', 'in need of "quotes"', "de"))
    frame = pd.DataFrame(rows, columns=["source", "target", "language"])
    quoting = csv.QUOTE_ALL if seed % 2 else csv.QUOTE_MINIMAL
    frame.to_csv(tmp_path / "p.tsv", sep="\t", index=False, quoting=quoting)
    assert pairs(tmp_path / "p.tsv") == [
        (" ".join(source.split()), " ".join(target.split())) for source, target, _ in rows
    ]


def test_an_open_quote_does_not_swallow_the_file() -> None:
    lines = [HEADER, '"open\tx\tde\n', *["a\tb\tde\n"] * 300_000]
    assert not tsv_is_quoted(lines)
