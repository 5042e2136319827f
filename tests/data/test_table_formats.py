"""Promises of data.table_formats: four formats give the same, and say where they are broken."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import PAIRS, refusal, text, write


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "ndjson"])
def test_every_format_reads_the_same(tmp_path: Path, ending: str) -> None:
    read = read_pairs(write(tmp_path / f"pairs.{ending}", PAIRS))
    assert read.table.to_pylist() == PAIRS
    assert read.dropped == []


def test_the_ending_may_be_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.csv", PAIRS).rename(tmp_path / "PAIRS.CSV")
    assert read_pairs(path).table.num_rows == 2


def test_other_columns_are_left_out(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "note,target,source,language\nx,Hund,dog,de\n")
    assert read_pairs(path).table.to_pylist() == PAIRS[:1]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "\ufeffsource,target,language\r\ndog,Hund,de\r\n")
    assert read_pairs(path).table.to_pylist() == PAIRS[:1]


def test_quotes_mean_something_in_csv_and_nothing_in_tsv(tmp_path: Path) -> None:
    csv = text(tmp_path / "p.csv", 'source,target,language\n"a, b","sag ""ja""",de\n')
    tsv = text(tmp_path / "p.tsv", 'source\ttarget\tlanguage\n"a\tb" "c\tde\n')
    assert read_pairs(csv).table.to_pylist() == [
        {"source": "a, b", "target": 'sag "ja"', "language": "de"}
    ]
    assert read_pairs(tsv).table.to_pylist() == [
        {"source": '"a', "target": 'b" "c', "language": "de"}
    ]


def test_parquet_may_hold_dictionaries_and_large_strings(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table(
        {
            "source": pa.array(["dog"]).dictionary_encode(),
            "target": pa.array(["Hund"], pa.large_string()),
            "language": ["de"],
        }
    )
    pq.write_table(table, path)
    assert read_pairs(path).table.to_pylist() == PAIRS[:1]


def test_a_missing_column_names_what_was_found_and_the_nearest(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "Source,traget,language\na,b,de\n")
    found = "found 'Source', 'traget', 'language'"
    assert refusal(read_pairs, path, skip_invalid=True) == [
        f"p.csv: no column 'source'; {found}; is it 'Source'? Rename it to 'source'",
        f"p.csv: no column 'target'; {found}; is it 'traget'? Rename it to 'target'",
    ]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "source,target,target,language\na,b,c,de\n")
    assert refusal(read_pairs, path) == ["p.csv: there are 2 columns 'target'"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.xlsx", "x", "unknown file ending; use one of .parquet, .csv, .tsv, .jsonl, .ndjson"),
        ("p.csv", "", "the file is empty"),
        ("p.csv", "source,target,language\n", "has no rows"),
        ("p.jsonl", "\n\n", "no column 'source'; found none"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    assert refusal(read_pairs, text(tmp_path / name, content))[0] == f"{name}: {message}"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(read_pairs, tmp_path / "p.csv") == ["p.csv: no such file"]


def test_bytes_that_are_not_utf_8_are_refused_by_line_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_bytes("source\ttarget\tlanguage\ndoor\tTür\tde\n".encode("latin-1"))
    assert refusal(read_pairs, path) == [
        "p.tsv: line 2, byte 29 of the file, is not UTF-8; save the file as UTF-8, "
        "for example with `iconv -f LATIN1 -t UTF-8`"
    ]


def test_a_quote_that_never_closes_is_refused_where_it_opens(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", 'source,target,language\na,b,de\nc,"d,de\ne,f,de\n')
    assert refusal(read_pairs, path, skip_invalid=True) == [
        "p.csv: line 3 can not be read (unexpected end of data); "
        "double the quotes inside a quoted cell"
    ]


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (message,) = refusal(read_pairs, text(tmp_path / "p.parquet", "source,target,language\n"))
    assert message.startswith("p.parquet: not a sound Parquet file: ")


def test_a_parquet_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", [{"source": 1, "target": "eins", "language": "de"}])
    assert refusal(read_pairs, path) == ["p.parquet: column 'source' holds int64; text is needed"]


def test_parquet_counts_rows_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", [PAIRS[0], {**PAIRS[1], "target": None}])
    assert refusal(read_pairs, path) == [
        "p.parquet row 2: 'target' is empty; drop the row or pass --skip-invalid"
    ]


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", 'source,target,language\n"two\nlines",zwei,de\n\nc,,de\n')
    assert refusal(read_pairs, path)[0].startswith("p.csv line 5: 'target' is empty")


def test_a_row_with_the_wrong_number_of_fields_is_refused(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "source,target,language\na, b,c,de\nd,e,de\n")
    assert refusal(read_pairs, path) == [
        "p.csv line 2: 4 fields where the header has 3; mend the separators, "
        "drop the row or pass --skip-invalid"
    ]


def test_every_kind_of_bad_json_line_is_refused(tmp_path: Path) -> None:
    good = '{"source": "a", "target": "b", "language": "de"}'
    bad = [
        '{"source": "a"',
        "[1]",
        good.replace('"b"', "3"),
        good.replace("b", "\\ud800"),
        '{"source": "c", "language": "de"}',
    ]
    problems = refusal(read_pairs, text(tmp_path / "p.jsonl", "\n".join([good, *bad])))
    starts = [
        "line 2: not JSON (Expecting",
        "line 3: a list where an object is needed",
        "line 4: 'target' is of type int, not text",
        "line 5: 'target' holds half a character",
        "line 6: 'target' is empty",
    ]
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(f"p.jsonl {start}")
        assert problem.endswith("drop the row or pass --skip-invalid")


def test_a_file_of_bad_json_alone_says_so(tmp_path: Path) -> None:
    assert len(refusal(read_pairs, text(tmp_path / "p.jsonl", "{\n}\n"))) == 2


def test_a_csv_with_spaces_after_its_commas_has_no_quotes_left(tmp_path: Path) -> None:
    rows = 'source, target, language\n"dog", "Hund", de\n"a, b", "c ""d""", "de"\n'
    read = read_pairs(text(tmp_path / "p.csv", rows))
    assert read.table.to_pylist() == [
        {"source": "dog", "target": "Hund", "language": "de"},
        {"source": "a, b", "target": 'c "d"', "language": "de"},
    ]


def test_a_boolean_is_no_image_id(tmp_path: Path) -> None:
    rows = ['{"image_id": true, "image": "a.png", "caption": "x"}']
    path = text(tmp_path / "c.jsonl", "\n".join(rows))
    assert "'image_id' is of type bool" in refusal(read_captions, path, language="de")[0]
