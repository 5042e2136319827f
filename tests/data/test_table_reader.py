"""Promises of data.table_reader: what is wrong is told at once, with its place and remedy."""

import json
import pickle
import struct
import unicodedata
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mla_ray.data.images import OWN_TABLE, decode_image
from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_reader import Stream, read_captions, read_pairs
from mla_ray.model.language import UnknownLanguage
from tests.support.logs import logged
from tests.support.user_tables import PAIRS, refusal, text, write


def png(color: str, size: int = 4) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def caption(image_id: str, image: object, **other: str) -> dict[str, object]:
    return {
        "image_id": image_id,
        "image": image,
        "language": "de",
        "caption": f"Bild {image_id}",
        "split": "train",
        **other,
    }


def test_text_is_stripped_and_in_nfc(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Tür")
    rows = [{"source": " door ", "target": f"{decomposed}\u00a0", "language": " DE-at "}]
    for ending in ("parquet", "jsonl"):
        assert read_pairs(write(tmp_path / f"p.{ending}", rows)).table.to_pylist() == [
            {"source": "door", "target": "Tür", "language": "de-AT"}
        ]


# Language


def test_only_the_language_asked_for_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", [*PAIRS, {"source": "a", "target": "b", "language": "pt-br"}])
    assert read_pairs(path, language="fr").table.to_pylist() == PAIRS[1:]
    assert read_pairs(path, language="pt-BR").table["language"].to_pylist() == ["pt-BR"]


def test_a_table_without_languages_is_in_the_language_asked_for(tmp_path: Path) -> None:
    path = text(tmp_path / "p.tsv", "source\ttarget\ndog\tHund\n")
    assert read_pairs(path, language="de").table.to_pylist() == PAIRS[:1]
    assert refusal(read_pairs, path) == ["p.tsv: no column 'language'; found 'source', 'target'"]


def test_a_language_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", PAIRS)
    assert refusal(read_pairs, path, language="sw") == [
        "p.csv: no row of language 'sw'; rows found: de (1), fr (1)"
    ]


def test_rows_of_a_tag_that_means_the_language_are_its_rows_and_that_is_said(
    tmp_path: Path,
) -> None:
    tags = ["zh", "cmn", "zh-CN", "zh-CN", "zh-Hant", "yue", "ja"]
    rows = [{"source": "a", "target": str(n), "language": tag} for n, tag in enumerate(tags)]
    path = write(tmp_path / "p.csv", rows)
    with logged("mla_ray.data.table_reader") as messages:
        kept = read_pairs(path, language="zh").table
        read_pairs(path, language="zh")
    assert kept["target"].to_pylist() == ["0", "1", "2", "3"]
    assert set(kept["language"].to_pylist()) == {"zh"}
    assert messages == [f"{path}: rows of cmn (1), zh-CN (2) are read as 'zh'"]
    assert read_pairs(path, language="zh-TW").table["target"].to_pylist() == ["4"]
    assert read_pairs(path).table["language"].to_pylist() == tags


def test_captions_are_read_as_the_languages_that_there_are_packs_for(tmp_path: Path) -> None:
    tags = ["en-GB", "de-AT", "de", "fr"]
    rows = [caption(str(n), png("red"), language=tag) for n, tag in enumerate(tags)]
    path = write(tmp_path / "c.parquet", rows)
    read = read_captions(path, languages=["en", "de"]).table
    assert read["language"].to_pylist() == ["en", "de", "de", "fr"]


def test_an_unknown_language_tag_is_refused_and_a_known_one_written_as_the_standard_does(
    tmp_path: Path,
) -> None:
    rows = "source\ttarget\tlanguage\na\tb\tPT_br\nc\td\tdeutsch\ne\tf\tiw\n"
    path = text(tmp_path / "p.tsv", rows)
    assert refusal(read_pairs, path) == [
        "p.tsv line 3: language 'deutsch' is unknown; write a BCP-47 tag such as 'de' or 'pt-BR'; "
        "drop the row or pass --skip-invalid",
    ]
    read = read_pairs(path, skip_invalid=True)
    assert read.table["language"].to_pylist() == ["pt-BR", "he"]
    assert read_pairs(path, language="pt-br", skip_invalid=True).table.num_rows == 1
    with pytest.raises(UnknownLanguage, match="'deutsch' is unknown"):
        read_pairs(path, language="deutsch")


# Rows


def test_an_empty_cell_is_refused_by_line(tmp_path: Path) -> None:
    path = text(tmp_path / "pairs.tsv", "source\ttarget\tlanguage\na\tb\tde\nc\t \tde\n")
    assert refusal(read_pairs, path) == [
        "pairs.tsv line 3: 'target' is empty; drop the row or pass --skip-invalid"
    ]


def test_a_row_that_repeats_another_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", [*PAIRS, {**PAIRS[0], "target": " Hund"}])
    assert refusal(read_pairs, path) == [
        "p.csv line 4: repeats line 2; drop the row or pass --skip-invalid"
    ]


def test_skip_invalid_drops_bad_rows_and_hands_them_back(tmp_path: Path) -> None:
    rows = "a\tb\tde\na\tb\tde\n\tb\tde\nc\td\tEnglish\ne\tf\ng\th\tde\n"
    path = text(tmp_path / "p.tsv", f"source\ttarget\tlanguage\n{rows}")
    read = read_pairs(path, skip_invalid=True)
    assert read.table["source"].to_pylist() == ["a", "g"]
    assert [problem.row for problem in read.dropped] == [3, 4, 5, 6]
    assert len(refusal(read_pairs, path)) == 4


def test_skip_invalid_does_not_accept_a_table_with_nothing_left(tmp_path: Path) -> None:
    path = text(tmp_path / "p.tsv", "source\ttarget\tlanguage\na\t\tde\n")
    assert refusal(read_pairs, path, skip_invalid=True) == [
        "p.tsv: no row is left",
        "p.tsv line 2: 'target' is empty; drop the row or pass --skip-invalid",
    ]


def test_a_long_refusal_shows_ten_problems_and_the_remedy(tmp_path: Path) -> None:
    path = text(tmp_path / "p.tsv", "source\ttarget\tlanguage\n" + "a\t\tde\n" * 13)
    with pytest.raises(InvalidTable) as caught:
        read_pairs(path)
    lines = str(caught.value).splitlines()
    assert lines[9].startswith(f"{path} line 11: 'target' is empty")
    assert lines[10:] == [
        "… and 3 more",
        "Fix the rows, or pass --skip-invalid to leave out 13.",
    ]
    assert len(caught.value.problems) == 13


def test_a_refusal_survives_the_way_from_a_worker(tmp_path: Path) -> None:
    with pytest.raises(InvalidTable) as caught:
        read_pairs(tmp_path / "p.csv")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


# Captions


def test_captions_hold_the_bytes_of_their_images(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", [caption("1", png("red")), caption("2", png("blue"))])
    table = read_captions(path).table
    assert table.column_names == ["image_id", "image", "language", "caption", "split"]
    assert table["image"].to_pylist() == [png("red"), png("blue")]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl"])
def test_images_are_found_beside_the_table_by_path_and_by_uri(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "red.png").write_bytes(png("red"))
    (folder / "blue sky.png").write_bytes(png("blue"))
    rows = [
        caption("1", "red.png"),
        caption("2", str(folder / "red.png")),
        caption("3", (folder / "blue sky.png").as_uri()),
    ]
    table = read_captions(write(folder / f"c.{ending}", rows)).table
    assert table["image"].to_pylist() == [png("red"), png("red"), png("blue")]


def test_images_that_can_not_be_had_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png("red", 64)[:60])
    (tmp_path / "text.png").write_text("no image")
    rows = [
        caption("1", "missing.png"),
        caption("2", "broken.png"),
        caption("3", "text.png"),
        caption("4", "memory://bucket/image.png"),
        caption("5", "."),
    ]
    problems = refusal(read_captions, write(tmp_path / "c.tsv", rows))
    starts = [
        "line 2: image 'missing.png' is missing: there is no missing.png;",
        "line 3: image 'broken.png' is cut off: 100.0% of its pixels are missing; fetch it again;",
        "line 4: image 'text.png' is none of PNG, JPEG, WEBP, GIF, BMP, AVIF, HEIC, TIFF;",
        "line 5: image 'memory://bucket/image.png' is missing: there is no memory://bucket/image.png;",
        "line 6: image '.' is missing",
    ]
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(f"c.tsv {start}")
        assert problem.endswith("drop the row or pass --skip-invalid")


def test_a_decompression_bomb_is_a_problem_of_its_row(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))
    path = write(tmp_path / "c.parquet", [caption("1", bomb), caption("2", png("red"))])
    assert refusal(read_captions, path) == [
        "c.parquet row 1: image of '1' is of 60000 x 60000 pixels; at most 89,478,485 pixels and "
        "100,000 a side are decoded: scale it down; drop the row or pass --skip-invalid"
    ]
    assert read_captions(path, skip_invalid=True).table["image_id"].to_pylist() == ["2"]


def test_an_image_just_above_the_limit_is_refused_too() -> None:
    data = png("red")
    width, height = Image.open(BytesIO(data)).size
    decode_image(data, replace(OWN_TABLE, max_pixels=width * height))
    with pytest.raises(ValueError, match=f"at most {width * height - 1} pixels"):
        decode_image(data, replace(OWN_TABLE, max_pixels=width * height - 1))


def test_images_may_stay_undecoded(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", [caption("1", b"no image")])
    assert read_captions(path, check_images=False).table["image"].to_pylist() == [b"no image"]


def test_one_id_may_not_stand_for_two_images(tmp_path: Path) -> None:
    rows = [
        caption("1", png("red")),
        caption("1", png("red"), caption="noch eine"),
        caption("1", png("blue"), caption="eine andere"),
    ]
    assert refusal(read_captions, write(tmp_path / "c.parquet", rows)) == [
        "c.parquet row 3: image_id '1' has another image in row 1; give each image an id of its "
        "own; drop the row or pass --skip-invalid"
    ]


def test_a_caption_that_repeats_another_names_it(tmp_path: Path) -> None:
    rows = [caption("1", png("red")), caption("1", png("red"))]
    assert refusal(read_captions, write(tmp_path / "c.parquet", rows)) == [
        "c.parquet row 2: repeats row 1; drop the row or pass --skip-invalid"
    ]


def test_numbers_may_be_image_ids(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    for name, image in (("c.parquet", png("red")), ("c.jsonl", "red.png")):
        path = write(tmp_path / name, [{**caption("1", image), "image_id": 7}])
        assert read_captions(path).table["image_id"].to_pylist() == ["7"]


def test_only_the_split_asked_for_is_kept_and_decoded(tmp_path: Path) -> None:
    rows = [caption("1", png("red")), caption("2", b"broken", split="test")]
    path = write(tmp_path / "c.parquet", rows)
    assert read_captions(path, split="train").table["image_id"].to_pylist() == ["1"]


def test_a_split_without_images_names_those_that_have_some(tmp_path: Path) -> None:
    rows = [caption("1", png("red")), caption("2", png("red")), caption("3", png("red"), split="x")]
    path = write(tmp_path / "c.parquet", rows)
    assert refusal(read_captions, path, split="test") == [
        "c.parquet: no row of split 'test'; rows found: train (2), x (1)"
    ]


def test_a_table_without_splits_is_read_only_when_none_is_asked_for(tmp_path: Path) -> None:
    row = caption("1", png("red"))
    del row["split"]
    path = write(tmp_path / "c.parquet", [row])
    assert read_captions(path).table["split"].to_pylist() == [None]
    (message,) = refusal(read_captions, path, split="train")
    assert message.startswith("c.parquet: no column 'split'; found 'image_id', 'image'")


# What programs leave behind


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl", "p.parquet"])
def test_a_nul_is_refused_and_a_byte_order_mark_dropped_in_every_format(
    name: str, tmp_path: Path
) -> None:
    rows = [("a\0b", "x"), ("\ufeffdog", "Hu\ufeffnd"), ("\ufeff", "nothing")]
    path = tmp_path / name
    columns = {"source": [s for s, _ in rows], "target": [t for _, t in rows]}
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
    elif name.endswith(".jsonl"):
        lines = [json.dumps({"source": s, "target": t}) for s, t in rows]
        path.write_text("\n".join(lines))
    else:
        between = "," if name.endswith(".csv") else "\t"
        lines = [between.join(row) for row in [("source", "target"), *rows]]
        path.write_text("\n".join(lines))
    refused = refusal(read_pairs, path, language="de")
    assert len(refused) == 2
    assert "'source' holds a NUL character" in refused[0]
    assert "'source' is empty" in refused[1]
    kept = read_pairs(path, language="de", skip_invalid=True).table.to_pylist()
    assert kept == [{"source": "dog", "target": "Hund", "language": "de"}]


def test_parts_of_a_folder_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["data_1.parquet", "data_2.parquet", "data_10.parquet", "data_11b2.parquet"]
    for number, name in enumerate(names):
        pq.write_table(pa.table({"source": [f"s{number}"], "target": ["t"]}), tmp_path / name)
    rows = [row for piece in Stream.pairs([tmp_path], "de") for row in piece.to_pylist()]
    assert [row["source"] for row in rows] == ["s0", "s1", "s2", "s3"]
