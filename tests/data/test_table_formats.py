"""Promises of data.table_formats: all formats give the same, and say where they are broken."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import read_captions, read_pairs
from tests.support.user_tables import PAIRS, refusal, text, write

KNOWN = (
    ".parquet, .csv, .tsv, .jsonl, .ndjson, .json, .arrow, .tmx, .tar; "
    "text also as .gz, .zst, .bz2, .lz4"
)


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
        ("p.docx", "x", f"unknown file ending; use one of {KNOWN}"),
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
    assert message.startswith("p.parquet: not a valid Parquet file: ")


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
        "p.csv line 2: 4 fields where the header has 3; fix the separators, "
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


PACKINGS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "GZ": "gzip"}


def packed(path: Path, ending: str) -> Path:
    out = path.with_name(f"{path.name}.{ending}")
    with pa.CompressedOutputStream(str(out), PACKINGS[ending]) as file:
        file.write(path.read_bytes())
    return out


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "ndjson", "json"])
def test_text_may_be_packed(tmp_path: Path, ending: str, packing: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    if ending == "json":
        text(path, json.dumps(PAIRS))
    else:
        write(path, PAIRS)
    assert read_pairs(packed(path, packing)).table.to_pylist() == PAIRS


def test_gzip_that_others_were_appended_to_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.csv.gz"
    path.write_bytes(
        gzip.compress(b"source,target,language\ndog,Hund,de\n") + gzip.compress(b"cat,chat,fr\n")
    )
    assert read_pairs(path).table.to_pylist() == PAIRS


@pytest.mark.parametrize("cut", [4, 12, 40, -1])
def test_packed_text_that_breaks_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) for row in PAIRS).encode())[:cut])
    (message,) = refusal(read_pairs, path, skip_invalid=True)
    assert message.startswith("p.jsonl.gz: not valid gzip, or truncated (")


def test_packed_text_is_refused_by_its_lines(tmp_path: Path) -> None:
    path = packed(text(tmp_path / "p.csv", "source,target,language\na,,de\n"), "gz")
    assert refusal(read_pairs, path)[0].startswith("p.csv.gz line 2: 'target' is empty")
    path = packed(text(tmp_path / "q.csv", "source,target,language\n"), "gz")
    path.write_bytes(gzip.compress("source,target,language\na,Tür,de".encode("latin-1")))
    assert "line 2, byte 26 of the file, is not UTF-8" in refusal(read_pairs, path)[0]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_of_a_csv_is_what_its_header_has(tmp_path: Path, separator: str) -> None:
    rows = [["source", "note", "target", "language"], ["a, b", "1,5", "c,d", "de"]]
    path = text(tmp_path / "p.csv", "".join(separator.join(row) + "\r\n" for row in rows))
    assert read_pairs(path).table.to_pylist() == [
        {"source": "a, b", "target": "c,d", "language": "de"}
    ]


def test_a_comma_separates_where_cells_hold_semicolons(tmp_path: Path) -> None:
    path = text(tmp_path / "p.csv", "source,target,a;b;c,language\nx; y,z;w,1,de\n")
    assert read_pairs(path).table.to_pylist() == [
        {"source": "x; y", "target": "z;w", "language": "de"}
    ]


def test_excels_line_names_the_separator_and_counts_as_a_line(tmp_path: Path) -> None:
    content = "sep=;\r\nsource;target;language\r\n" + "dog;Hund;de\r\na;;de\r\n"
    path = text(tmp_path / "p.csv", "\ufeff" + content)
    assert refusal(read_pairs, path)[0].startswith("p.csv line 4: 'target' is empty")
    assert read_pairs(path, skip_invalid=True).table.to_pylist() == PAIRS[:1]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
def test_what_is_not_utf8_by_its_beginning_is_named(
    tmp_path: Path, encoding: str, said: str, ending: str
) -> None:
    path = tmp_path / f"p.{ending}"
    content = json.dumps(PAIRS) if "json" in ending else "source\ttarget\tlanguage\ndog\tHund\tde\n"
    path.write_bytes(content.encode(encoding))
    assert refusal(read_pairs, path) == [
        f"p.{ending}: is {said}; save the file as UTF-8, for example with "
        f"`iconv -f {said} -t UTF-8`"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p.xlsx", "`libreoffice --headless --convert-to csv p.xlsx` writes one"),
        ("corpus.de", "`(printf 'source\\ttarget\\n'; paste FILE.en FILE.de) > pairs.tsv`"),
        ("corpus.txt", "paste FILE.en FILE.de"),
    ],
)
def test_what_converts_other_formats_is_said(tmp_path: Path, name: str, said: str) -> None:
    (message,) = refusal(read_pairs, text(tmp_path / name, "x"))
    assert f"unknown file ending; use one of {KNOWN}" in message
    assert said in message


@pytest.mark.parametrize("name", ["hf-hub:Helsinki-NLP/opus-100", "Helsinki-NLP/opus-100"])
def test_a_name_of_the_hub_is_told_what_writes_a_table(name: str) -> None:
    with pytest.raises(InvalidTable, match=r"load_dataset\('Helsinki-NLP/opus-100'"):
        read_pairs(name)


def test_a_folder_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidTable, match="a folder without Parquet files"):
        read_pairs(tmp_path)
