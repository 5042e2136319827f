"""Promises of mla_ray.training.prepare."""

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from upath import UPath

from mla_ray.data import table_reader, table_text
from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore, encode_images
from mla_ray.data.keys import hashes, key_of
from mla_ray.data.parquet import read_parquet
from mla_ray.data.problems import InvalidTable
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer, token_ids
from mla_ray.runtime.storage import as_path
from mla_ray.training import drafts
from mla_ray.training.config import AcquireConfig, HeldOut, Stage
from mla_ray.training.encode_features import BlockEncoder
from mla_ray.training.prepare import Prepared, contents, prepare, read_prepared
from mla_ray.training.run_spec import sources
from tests.support.s3 import s3_bucket

CONFIG = AcquireConfig(
    nlt=Stage(steps=1, batch=2, lr=1e-3), le=Stage(steps=1, batch=2, lr=1e-3), vocab_size=400
)
Row = dict[str, Any]
PAIR = ("source", "target", "language")
CAPTION = ("image_id", "image", "language", "caption", "split")


def pairs(count: int, language: str = "de", word: str = "Ding") -> list[Row]:
    """Every third source has a second translation."""
    rows = [
        {"source": f"thing {n}", "target": f"{word} {n}", "language": language}
        for n in range(count)
    ]
    more = [row | {"target": f"{row['target']} auch"} for row in rows[::3]]
    return rows + more


def captions(pngs: list[bytes], language: str = "de", split: str = "train") -> list[Row]:
    """Two captions of each image."""
    return [
        {
            "image_id": f"image {split} {n}",
            "image": png,
            "language": language,
            "caption": f"Bild {n} {kind}",
            "split": split,
        }
        for n, png in enumerate(pngs)
        for kind in ("hell", "bunt")
    ]


def write(path: Path | UPath, rows: Sequence[Row]) -> str:
    """A table in the format of its name's ending; returns where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            with path.open("wb") as file:
                pq.write_table(pa.Table.from_pylist(list(rows)), file)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ending:
            delimiter = "," if ending == ".csv" else "\t"
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
                writer.writeheader()
                writer.writerows(rows)
    return str(path)


def prepared(
    native: Native, run: Path | UPath, *corpora: Corpus, config: AcquireConfig = CONFIG, **how: Any
) -> Prepared:
    return prepare(native, corpora, config, as_path(run), **how)


def index(folder: Path | UPath) -> list[tuple[str, int]]:
    document = json.loads((folder / "index.json").read_bytes())
    return [(block["prefix"], block["rows"]) for block in document["blocks"]]


def table(folder: Path | UPath, part: str = "rows") -> pa.Table:
    """All blocks of a table, in the order of its index."""
    place = folder if part == "rows" else folder / part
    names = folder / part if part == "rows" else place
    return pa.concat_tables(read_parquet(as_path(names / f"b{p}.parquet")) for p, _ in index(place))


def tokenizer_of(run: Path | UPath) -> Tokenizer:
    return Tokenizer.from_buffer((run / "data" / "tokenizer.json").read_bytes())


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def texts_of(run: Path | UPath, language: str, name: str) -> list[tuple[str, str]]:
    """Key and text of every row."""
    found = table(run / "data" / language / name)
    decoded = tokenizer_of(run).decode_batch(found["ids"].to_pylist())
    return list(zip(found["key"].to_pylist(), [text.strip() for text in decoded], strict=True))


def said(rows: Sequence[Row]) -> Counter[tuple[str, str]]:
    """Key and text of every row of a table of translations or captions."""
    return Counter(
        (key_of(row["source"]), folded(row["target"]))
        if "source" in row
        else (key_of(row["image"]), folded(row["caption"]))
        for row in rows
    )


def tree(run: Path | UPath) -> dict[str, bytes]:
    root = as_path(run) / "data"
    if root.protocol in ("", "file"):
        found = [file for file in Path(root.path).rglob("*") if file.is_file()]
        return {file.relative_to(root.path).as_posix(): file.read_bytes() for file in found}
    prefix = root.path.rstrip("/") + "/"
    return {
        file.removeprefix(prefix): root.fs.cat_file(file)
        for file in root.fs.find(root.path)
        if not file.endswith("/")
    }


BlocksOf = Callable[[int], None]


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> BlocksOf:
    def limit(rows: int) -> None:
        monkeypatch.setattr(drafts, "BLOCK", rows)
        monkeypatch.setattr(drafts, "IMAGES", rows)

    return limit


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read some rows at a time."""
    monkeypatch.setattr(table_text, "CHUNK", 7)
    monkeypatch.setattr(table_text, "IMAGE_CHUNK", 5)


@pytest.fixture
def tables(tmp_path: Path, pngs: list[bytes]) -> dict[str, list[Row]]:
    """Two tables of translations and one of captions, written to `tmp_path`."""
    made = {
        "nlt-0000": pairs(70),
        "nlt-0001": pairs(40, word="Sache"),
        "le-0000": captions(pngs),
    }
    for name, rows in made.items():
        write(tmp_path / f"{name}.parquet", rows)
    return made


@pytest.fixture
def german(tmp_path: Path, tables: dict[str, list[Row]]) -> Corpus:
    nlt = [tmp_path / f"{name}.parquet" for name in tables if name.startswith("nlt")]
    return Corpus("de", nlt, tmp_path / "le-0000.parquet")


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [3, 17, 10_000])
def test_every_row_of_all_tables_comes_out_once_whatever_the_block_size(
    native: Native,
    tmp_path: Path,
    tables: dict[str, list[Row]],
    german: Corpus,
    blocks_of: BlocksOf,
    small_pieces: None,
    limit: int,
) -> None:
    blocks_of(limit)
    made = prepared(native, tmp_path / "run", german)
    for name, rows in tables.items():
        assert Counter(texts_of(tmp_path / "run", "de", name)) == said(rows)
        folder = tmp_path / "run" / "data" / "de" / name
        assert sum(count for _, count in index(folder)) == made.rows["de"][name] == len(rows)
        for prefix, count in index(folder):
            block = read_parquet(as_path(folder / "rows" / f"b{prefix}.parquet"))
            keys = block["key"].to_pylist()
            assert len(block) == count
            assert all(f"{value:064b}".startswith(prefix) for value in hashes(keys).tolist())
            assert count <= limit or len(set(keys)) == 1
        stored = {file.name for file in (folder / "rows").iterdir()}
        assert stored == {f"b{prefix}.parquet" for prefix, _ in index(folder)}


def test_block_size_changes_neither_vocabulary_nor_initial_rows(
    native: Native, tmp_path: Path, german: Corpus, blocks_of: BlocksOf
) -> None:
    config = CONFIG.model_copy(update={"sample": 20, "held_out": HeldOut(every=1, size=5)})
    for limit in (3, 10_000):
        blocks_of(limit)
        prepared(native, tmp_path / str(limit), german, config=config)
    few, many = tree(tmp_path / "3"), tree(tmp_path / "10000")
    for name in ("tokenizer.json", "init.safetensors", "de/held-out/rows.parquet"):
        assert few[name] == many[name], name


def test_keys_are_those_of_sources_and_of_images(
    native: Native,
    tmp_path: Path,
    tables: dict[str, list[Row]],
    german: Corpus,
    blocks_of: BlocksOf,
) -> None:
    blocks_of(11)
    prepared(native, tmp_path / "run", german)
    for name, rows in tables.items():
        found = table(tmp_path / "run" / "data" / "de" / name, "contents")
        wanted = {row.get("source", row.get("image")) for row in rows}
        wanted = {text.encode() if isinstance(text, str) else text for text in wanted}
        assert len(found) == len(wanted), "each once"
        assert set(found["content"].to_pylist()) == wanted
        for key, content in zip(
            found["key"].to_pylist(), found["content"].to_pylist(), strict=True
        ):
            assert key == key_of(content)
    whole = contents(as_path(tmp_path / "run"), [german])
    sizes = [(each.kind, sum(rows for _, rows in each.blocks)) for each in whole]
    assert sizes == [("text", 70), ("text", 40), ("image", 12)]


def test_captions_tell_rows_with_the_same_text(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    rows = [row | {"caption": f"Bild {n % 5}"} for n, row in enumerate(captions(pngs))]
    write(tmp_path / "le-0000.parquet", rows)
    prepared(native, tmp_path / "run", german)
    found = table(tmp_path / "run" / "data" / "de" / "le-0000")
    expected = Counter(key_of(row["caption"].lower()) for row in rows)
    assert Counter(found["caption"].to_pylist()) == expected


def test_long_texts_are_cut_at_the_context_and_keep_their_end(
    native: Native, tmp_path: Path
) -> None:
    rows = pairs(20)
    rows[4]["target"] = "ein sehr langer Text " * 40 + "語"
    write(tmp_path / "pairs.jsonl", rows)
    prepared(native, tmp_path / "run", Corpus("de", [tmp_path / "pairs.jsonl"]))
    tokenizer = tokenizer_of(tmp_path / "run")
    found = table(tmp_path / "run" / "data" / "de" / "nlt-0000")["ids"].to_pylist()
    assert max(map(len, found)) == native.text.context_length
    assert {ids[0] for ids in found} == {tokenizer.token_to_id("<bos>")}
    assert {ids[-1] for ids in found} == {tokenizer.token_to_id("<eos>")}
    past_the_cut = set(token_ids(tokenizer, ["語"])[0]) - {ids for row in found for ids in row}
    assert past_the_cut
    tokens = load((tmp_path / "run" / "data" / "init.safetensors").read_bytes())["tokens"]
    assert past_the_cut <= set(tokens.tolist()), "a query may begin with them"


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_any_format_gives_the_same_blocks(
    native: Native, tmp_path: Path, ending: str
) -> None:
    expected = write(tmp_path / "expected.jsonl", pairs(30))
    prepared(native, tmp_path / "expected", Corpus("de", [expected]))
    path = write(tmp_path / f"pairs.{ending}", pairs(30))
    made = prepared(native, tmp_path / "run", Corpus("de", [path]))
    assert made == Prepared({"de": {"nlt-0000": 40}})
    found, wanted = tree(tmp_path / "run"), tree(tmp_path / "expected")
    assert found.keys() == wanted.keys()
    for name in found:
        if "contents/" not in name:  # these tell rows of files apart
            assert found[name] == wanted[name], name


def test_a_folder_of_parquet_files_is_one_table(native: Native, tmp_path: Path) -> None:
    rows = pairs(30)
    for part in range(4):
        write(tmp_path / "pairs" / f"part-{part}.parquet", rows[part::4])
    made = prepared(native, tmp_path / "run", Corpus("de", [tmp_path / "pairs"]))
    assert made.rows == {"de": {"nlt-0000": 40}}
    assert Counter(texts_of(tmp_path / "run", "de", "nlt-0000")) == said(rows)
    found = table(tmp_path / "run" / "data" / "de" / "nlt-0000", "contents")
    assert set(found["file"].to_pylist()) == {0, 1, 2, 3}
    (text,) = contents(as_path(tmp_path / "run"), [Corpus("de", [tmp_path / "pairs"])])
    assert [Path(name).name for name in text.files] == [f"part-{n}.parquet" for n in range(4)]


def test_images_are_the_same_as_bytes_beside_the_table_and_at_a_url(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    remote = UPath(f"memory://images-{tmp_path.name}")
    rows = captions(pngs)
    beside, at_url = [dict(row) for row in rows], [dict(row) for row in rows]
    for n, png in enumerate(pngs):
        write_png(tmp_path / "png" / f"{n}.png", png)
        write_png(remote / f"{n}.png", png)
        for row in (2 * n, 2 * n + 1):
            beside[row]["image"] = f"png/{n}.png"
            at_url[row]["image"] = str(remote / f"{n}.png")
    write(tmp_path / "beside.csv", beside)
    write(tmp_path / "url.jsonl", at_url)
    tables = {"bytes": "le-0000.parquet", "beside": "beside.csv", "url": "url.jsonl"}
    for name, file in tables.items():
        prepared(native, tmp_path / name, Corpus("de", german.pairs, tmp_path / file))
        assert Counter(texts_of(tmp_path / name, "de", "le-0000")) == said(rows)
        found = table(tmp_path / name / "data" / "de" / "le-0000", "contents").to_pylist()
        assert {row["key"] for row in found} == {key_of(png) for png in pngs}
        for row in found:
            content = as_path(row["uri"]).read_bytes() if row["content"] is None else row["content"]
            assert key_of(content) == row["key"]


def write_png(path: Path | UPath, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)


def test_an_image_that_was_replaced_is_seen_by_the_next_run(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    rows = [row | {"image": "image.png"} for row in captions(pngs[:1])]
    corpus = Corpus("de", german.pairs, write(tmp_path / "captions.jsonl", rows))
    for name, png in (("first", pngs[0]), ("second", pngs[1])):
        write_png(tmp_path / "image.png", png)
        prepared(native, tmp_path / name, corpus)
        found = table(tmp_path / name / "data" / "de" / "le-0000")
        assert set(found["key"].to_pylist()) == {key_of(png)}


def test_an_image_that_changed_since_is_not_taken_for_the_old_one(
    native: Native, native_folder: Path, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    write_png(tmp_path / "image.png", pngs[0])
    rows = [row | {"image": "image.png"} for row in captions(pngs[:1])]
    corpus = Corpus("de", german.pairs, write(tmp_path / "captions.jsonl", rows))
    prepared(native, tmp_path / "run", corpus)
    ((folder, prefix),) = [
        (each.folder, prefix)
        for each in contents(as_path(tmp_path / "run"), [corpus])
        for prefix, _ in each.blocks
        if each.kind == "image"
    ]
    store = FeatureStore(as_path(tmp_path / "store"), native.fingerprint, "image")
    block = {
        "path": str(folder / f"b{prefix}.parquet"),
        "prefix": prefix,
        "table": 0,
        "kind": "image",
    }
    write_png(tmp_path / "image.png", pngs[1])
    encoder = BlockEncoder(str(native_folder), {"image": store})
    with pytest.raises(LookupError, match=r"image\.png is not the image that the run was prepared"):
        encoder(pa.Table.from_pylist([block]))
    assert store.keys() == {}
    write_png(tmp_path / "image.png", pngs[0])
    (done,) = encoder(pa.Table.from_pylist([block])).to_pylist()
    assert (done["computed"], done["failed"]) == (1, 0)
    np.testing.assert_allclose(
        store.read([key_of(pngs[0])]), encode_images(native, pngs[:1]), atol=1e-6
    )


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_of_very_many_bad_rows_the_first_are_named_and_all_are_counted(
    native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_invalid: bool
) -> None:
    monkeypatch.setattr(table_reader, "KEPT_PROBLEMS", 12)
    empty = [row | {"target": ""} for row in pairs(30)]
    path = write(tmp_path / "pairs.tsv", [*pairs(30, word="Neu"), *empty])
    if skip_invalid:
        made = prepared(native, tmp_path / "run", Corpus("de", [path]), skip_invalid=True)
        assert (made.dropped, made.problems[0].split(": ")[0]) == (40, f"{path} line 42")
        return
    with pytest.raises(InvalidTable, match=r"… and 30 more\n.* to leave out 40") as refused:
        prepared(native, tmp_path / "run", Corpus("de", [path]))
    assert [problem.row for problem in refused.value.problems] == list(range(42, 54))


@pytest.mark.parametrize("limit", [4, 10_000])
def test_repeats_are_refused_with_the_file_and_both_rows(
    native: Native, tmp_path: Path, blocks_of: BlocksOf, small_pieces: None, limit: int
) -> None:
    blocks_of(limit)
    rows = pairs(30)
    rows += [rows[2], rows[25], rows[2]]  # lines 42 to 44 of rows in lines 4 and 27
    path = write(tmp_path / "pairs.csv", rows)
    with pytest.raises(InvalidTable) as refused:
        prepared(native, tmp_path / "run", Corpus("de", [path]))
    assert [str(problem) for problem in refused.value.problems] == [
        f"{path} line {line}: repeats line {first}; drop the row or pass --skip-invalid"
        for line, first in ((42, 4), (43, 27), (44, 4))
    ]
    assert not (tmp_path / "run").exists()


def test_a_repeat_of_another_file_of_the_table_names_that_file(
    native: Native, tmp_path: Path
) -> None:
    rows = pairs(20)
    first = write(tmp_path / "pairs" / "a.parquet", rows)
    second = write(tmp_path / "pairs" / "b.parquet", [*pairs(4, word="Neu"), rows[7]])
    with pytest.raises(InvalidTable) as refused:
        prepared(native, tmp_path / "run", Corpus("de", [tmp_path / "pairs"]))
    (problem,) = refused.value.problems
    assert (problem.file, problem.row) == (second, 7)
    assert f"repeats {first} row 8" in problem.message


@pytest.mark.parametrize("limit", [4, 10_000])
def test_of_captions_only_those_of_the_same_image_repeat(
    native: Native,
    tmp_path: Path,
    pngs: list[bytes],
    german: Corpus,
    blocks_of: BlocksOf,
    small_pieces: None,
    limit: int,
) -> None:
    blocks_of(limit)
    rows = captions(pngs)
    rows.append(rows[3] | {"caption": rows[0]["caption"]})  # image 0's caption, of image 1
    rows.append(rows[3])
    path = write(tmp_path / "captions.parquet", rows)
    with pytest.raises(InvalidTable) as refused:
        prepared(native, tmp_path / "run", Corpus("de", german.pairs, path))
    (problem,) = refused.value.problems
    assert str(problem).startswith(f"{path} row 26: repeats row 4;")


@pytest.mark.parametrize("limit", [4, 10_000])
def test_bad_rows_and_repeats_are_dropped_and_counted_if_asked(
    native: Native, tmp_path: Path, blocks_of: BlocksOf, small_pieces: None, limit: int
) -> None:
    blocks_of(limit)
    rows = pairs(30)
    bad = [rows[2], rows[2] | {"target": ""}, rows[2] | {"language": "german"}]
    path = write(tmp_path / "pairs.tsv", [*rows, *bad])
    made = prepared(native, tmp_path / "run", Corpus("de", [path]), skip_invalid=True)
    assert made.rows == {"de": {"nlt-0000": 40}}
    assert made.dropped == 3
    lines = [problem.split(": ")[0] for problem in made.problems]
    assert lines == [f"{path} line {line}" for line in (42, 43, 44)]
    assert read_prepared(tmp_path / "run") == made
    assert Counter(texts_of(tmp_path / "run", "de", "nlt-0000")) == said(rows)


def test_all_that_is_wrong_with_all_tables_is_told_at_once_and_nothing_is_written(
    native: Native, tmp_path: Path, pngs: list[bytes]
) -> None:
    first, second = pairs(20), pairs(20)
    first[3]["target"] = " "
    first[5]["language"] = "xx-invalid-tag"
    first.append(first[0])
    second[1]["source"] = ""
    rows = captions(pngs)
    for row in rows:
        row["image"] = "missing.png"
    write(tmp_path / "first.csv", first)
    write(tmp_path / "second.jsonl", second)
    write(tmp_path / "captions.jsonl", rows)
    corpus = Corpus(
        "de", [tmp_path / "first.csv", tmp_path / "second.jsonl"], tmp_path / "captions.jsonl"
    )
    with pytest.raises(InvalidTable) as refused:
        prepared(native, tmp_path / "run", corpus)
    found = [(Path(problem.file).name, problem.row) for problem in refused.value.problems]
    assert found == [
        *(("first.csv", line) for line in (5, 7, 29)),
        ("second.jsonl", 2),
        *(("captions.jsonl", line) for line in range(1, 25)),
    ]
    assert not (tmp_path / "run").exists()


def test_missing_images_cost_their_rows_only(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus, small_pieces: None
) -> None:
    rows = captions(pngs)
    for n, png in enumerate(pngs):
        write_png(tmp_path / f"{n}.png", png)
        for row in rows[2 * n : 2 * n + 2]:
            row["image"] = f"{n}.png"
    for n in range(3, 8):  # more than a whole piece
        (tmp_path / f"{n}.png").unlink()
    corpus = Corpus("de", german.pairs, write(tmp_path / "captions.jsonl", rows))
    with pytest.raises(InvalidTable, match=r"line 7: image '3\.png' is missing"):
        prepared(native, tmp_path / "run", corpus)
    made = prepared(native, tmp_path / "run", corpus, skip_invalid=True)
    assert (made.rows["de"]["le-0000"], made.dropped) == (14, 10)


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_a_table_without_rows_of_the_language_is_refused_even_if_rows_may_be_skipped(
    native: Native, tmp_path: Path, german: Corpus, skip_invalid: bool
) -> None:
    hindi = Corpus("hi", german.pairs, german.captions)
    with pytest.raises(InvalidTable, match=r"no row of language 'hi'; rows found: de \(94\)"):
        prepared(native, tmp_path / "run", hindi, skip_invalid=skip_invalid)
    assert not (tmp_path / "run").exists()


# --- again --------------------------------------------------------------------------------------


def test_a_second_prepare_does_nothing(native: Native, tmp_path: Path, german: Corpus) -> None:
    made = prepared(native, tmp_path / "run", german)
    files_before = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()
    }
    Path(german.pairs[0]).unlink()  # not even read
    told: list[tuple[str, int]] = []
    again = prepared(native, tmp_path / "run", german, progress=lambda *step: told.append(step))
    assert again == made
    assert told == []
    for file, changed in files_before.items():
        assert file.stat().st_mtime_ns == changed


def test_one_that_was_killed_starts_anew(
    native: Native, tmp_path: Path, german: Corpus, blocks_of: BlocksOf
) -> None:
    blocks_of(20)
    prepared(native, tmp_path / "whole", german)
    blocks_of(7)  # as an older version may have had it
    prepared(native, tmp_path / "run", german)
    blocks_of(20)
    (tmp_path / "run" / "data" / "prepared.json").unlink()
    (tmp_path / "run" / "data" / "tokenizer.json").write_text("half")
    prepared(native, tmp_path / "run", german)
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_a_run_that_is_not_prepared_is_told_from_one_that_is(
    native: Native, tmp_path: Path, german: Corpus
) -> None:
    with pytest.raises(FileNotFoundError):
        read_prepared(tmp_path / "run")
    made = prepared(native, tmp_path / "run", german)
    assert read_prepared(tmp_path / "run") == made


def test_progress_counts_the_rows_of_each_table(
    native: Native, tmp_path: Path, german: Corpus, blocks_of: BlocksOf, small_pieces: None
) -> None:
    blocks_of(20)
    told: list[tuple[str, int]] = []
    prepared(native, tmp_path / "run", german, progress=lambda *step: told.append(step))
    for phase in ("reading de", "tokenising de"):
        counts = [rows for name, rows in told if name == phase]
        ends = [here for here, then in zip(counts, [*counts[1:], 0], strict=True) if then < here]
        assert ends == [94, 54, 24]


# --- held-out rows ------------------------------------------------------------------------------


def held_out(**settings: Any) -> AcquireConfig:
    return CONFIG.model_copy(update={"held_out": HeldOut(every=5, **settings)})


def held_rows(run: Path | UPath, language: str = "de") -> pa.Table:
    return read_parquet(as_path(run) / "data" / language / "held-out" / "rows.parquet")


@pytest.mark.parametrize("limit", [6, 10_000])
def test_held_out_pairs_are_in_no_training_table(
    native: Native,
    tmp_path: Path,
    tables: dict[str, list[Row]],
    german: Corpus,
    blocks_of: BlocksOf,
    limit: int,
) -> None:
    blocks_of(limit)
    made = prepared(native, tmp_path / "run", german, config=held_out(size=12))
    held = held_rows(tmp_path / "run")
    keys = set(held["key"].to_pylist())
    assert len(held) == 12
    for name in ("nlt-0000", "nlt-0001"):  # which says other things of the same sources
        apart = [row for row in tables[name] if key_of(row["source"]) not in keys]
        assert len(apart) < len(tables[name])
        assert Counter(texts_of(tmp_path / "run", "de", name)) == said(apart)
        assert made.rows["de"][name] == len(apart)
    assert Counter(texts_of(tmp_path / "run", "de", "le-0000")) == said(tables["le-0000"])
    features = table(tmp_path / "run" / "data" / "de" / "nlt-0000", "contents")
    assert keys <= set(features["key"].to_pylist()), "or nothing would encode them"


def test_a_held_out_text_is_in_no_training_table_in_other_letters(
    native: Native, tmp_path: Path, blocks_of: BlocksOf
) -> None:
    """Nor is it wrong for its own other spelling: the native's tokenizer knows no difference."""
    blocks_of(6)
    spelled = [lambda t: t, str.upper, lambda t: f"{t}.", lambda t: f"“{t}”!", str.title]
    rows = [
        {"source": spell(f"thing {n}"), "target": f"Ding {n} {kind}", "language": "de"}
        for n in range(30)
        for kind, spell in enumerate(spelled)
    ]
    tables = [
        write(tmp_path / "pairs.jsonl", rows),
        write(tmp_path / "words.jsonl", [row | {"source": f"({row['source']})"} for row in rows]),
    ]
    number_of = {
        key_of(f"{left}{row['source']}{right}"): row["source"].strip("“”!.").lower()
        for row in rows
        for left, right in (("", ""), ("(", ")"))
    }
    run = tmp_path / "run"
    prepared(native, run, Corpus("de", tables), config=held_out(size=20))
    held = held_rows(run)["key"].to_pylist()
    apart = {number_of[key] for key in held}
    assert len(held) == 20
    assert len(apart) == len(set(held)) < 20, "a text has one key, however it is written"
    for name in ("nlt-0000", "nlt-0001"):
        trained = {number_of[key] for key, _ in texts_of(run, "de", name)}
        assert trained == {f"thing {n}" for n in range(30)} - apart


def test_captions_of_other_letters_are_the_same_caption(
    native: Native, tmp_path: Path, pngs: list[bytes]
) -> None:
    """Else the loss of LE takes "Hund" as wrong for the picture that "hund." is of."""
    texts = ["Hund", "hund", "HUND.", " „Hund“ ", "Hunde", "Katze"]
    rows = [row | {"caption": text} for row, text in zip(captions(pngs)[::2], texts, strict=False)]
    paths = write(tmp_path / "p.jsonl", pairs(9)), write(tmp_path / "c.parquet", rows)
    prepared(native, tmp_path / "run", Corpus("de", [paths[0]], paths[1]))
    found = table(tmp_path / "run" / "data" / "de" / "le-0000")
    text_of = dict(zip(map(key_of, pngs), texts, strict=False))
    named: dict[str, set[str]] = {}
    for key, caption in zip(*(found[n].to_pylist() for n in ("key", "caption")), strict=True):
        named.setdefault(caption, set()).add(text_of[key])
    assert sorted(map(sorted, named.values())) == [sorted(texts[:4]), ["Hunde"], ["Katze"]]


def test_held_out_pairs_are_a_draw_from_a_sorted_table(native: Native, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(300)[:300])
    prepared(native, tmp_path / "run", Corpus("de", [path]), config=held_out(size=60))
    number_of = {key_of(f"thing {n}"): n for n in range(300)}
    numbers = [number_of[key] for key in held_rows(tmp_path / "run")["key"].to_pylist()]
    thirds = Counter(n // 100 for n in numbers)
    assert len(numbers) == 60
    assert min(thirds[third] for third in range(3)) >= 8


def test_tokens_of_held_out_pairs_alone_have_no_row(native: Native, tmp_path: Path) -> None:
    rows = [
        {"source": f"s {n}", "target": f"{chr(0x4E00 + 97 * n)} {n}", "language": "de"}
        for n in range(40)
    ]
    path = write(tmp_path / "pairs.jsonl", rows)
    run = tmp_path / "run"
    prepared(native, run, Corpus("de", [path]), config=held_out(size=10))
    tokenizer = tokenizer_of(run)
    init = load((run / "data" / "init.safetensors").read_bytes())
    rows_of_ids = table(run / "data" / "de" / "nlt-0000")["ids"].to_pylist()
    trained = {token for ids in rows_of_ids for token in ids}
    assert set(init["tokens"].tolist()) == trained | {tokenizer.token_to_id("<pad>")}
    held = held_rows(run)
    target_of = {key_of(row["source"]): row["target"] for row in rows}
    ours = LanguageTokenizer(tokenizer, init["tokens"].numpy(), native.text.context_length)
    targets = [target_of[key] for key in held["key"].to_pylist()]
    found = held["ids"].to_pylist()
    assert found == [ids.tolist() for ids in ours(targets)]
    whole = token_ids(tokenizer, targets)
    assert sum(map(len, found)) < sum(map(len, whole)), "else this test shows nothing"


def test_a_held_out_share_that_leaves_nothing_to_train_on_is_refused(
    native: Native, tmp_path: Path, german: Corpus
) -> None:
    with pytest.raises(ValueError, match=r"held_out.size 1000 leaves a table no row"):
        prepared(native, tmp_path / "run", german, config=held_out())
    assert not (tmp_path / "run").exists()


def test_held_out_captions_are_those_of_the_split_validation(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus, blocks_of: BlocksOf
) -> None:
    blocks_of(3)
    train, apart = captions(pngs[:8]), captions(pngs[8:], split="validation")
    rows = [*train, *apart, *captions(pngs[:2], split="test")]
    corpus = Corpus("de", german.pairs, write(tmp_path / "captions.parquet", rows))
    made = prepared(native, tmp_path / "run", corpus, config=held_out(of="captions", size=5))
    assert made.rows["de"] == {"nlt-0000": 94, "nlt-0001": 54, "le-0000": 16}
    assert Counter(texts_of(tmp_path / "run", "de", "le-0000")) == said(train)
    held = held_rows(tmp_path / "run")
    assert len(held) == 5
    keys = set(held["key"].to_pylist())
    assert keys <= {key_of(row["image"]) for row in apart}
    whole = contents(as_path(tmp_path / "run"), [corpus])
    found = [each for each in whole if each.kind == "image"]
    assert [sum(rows for _, rows in each.blocks) for each in found] == [8, len(keys)]
    of_held = read_parquet(found[1].folder / "b.parquet")
    assert {key_of(content) for content in of_held["content"].to_pylist()} == keys


def test_held_out_captions_without_a_caption_table_are_refused_by_language(
    native: Native, tmp_path: Path, german: Corpus
) -> None:
    config = held_out(of="captions")
    with pytest.raises(ValueError, match=r"held_out.of is 'captions', but 'de' has no caption"):
        prepared(native, tmp_path / "run", Corpus("de", german.pairs), config=config)
    assert not (tmp_path / "run").exists()


def test_held_out_captions_without_a_split_validation_are_refused_with_the_remedy(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    rows = [*captions(pngs), *captions(pngs[:2], "en", "validation")]
    path = write(tmp_path / "captions.parquet", rows)
    corpus = Corpus("de", german.pairs, path)
    with pytest.raises(ValueError, match=r"rows found: train \(24\)\. Add some, or set") as refused:
        prepared(native, tmp_path / "run", corpus, config=held_out(of="captions"))
    why = f"{path} has no row of split 'validation' in 'de'"
    assert str(refused.value).startswith(f"held_out.of is 'captions', but {why}")
    assert not (tmp_path / "run").exists()


def test_a_missing_image_of_the_split_validation_is_refused_too(
    native: Native, tmp_path: Path, pngs: list[bytes], german: Corpus
) -> None:
    rows = [*captions(pngs[:2]), *captions(pngs[2:5], split="validation")]
    for n in range(5):
        for row in rows[2 * n : 2 * n + 2]:
            row["image"] = f"{n}.png"
        if n != 4:
            write_png(tmp_path / f"{n}.png", pngs[n])
    corpus = Corpus("de", german.pairs, write(tmp_path / "captions.jsonl", rows))
    config = held_out(of="captions")
    with pytest.raises(InvalidTable, match=r"line 9: image '4\.png' is missing"):
        prepared(native, tmp_path / "run", corpus, config=config)
    assert not (tmp_path / "run").exists()
    prepared(native, tmp_path / "run", corpus, config=config, skip_invalid=True)
    assert len(held_rows(tmp_path / "run")) == 4


def test_without_held_out_figures_nothing_is_held_out(
    native: Native, tmp_path: Path, german: Corpus
) -> None:
    config = CONFIG.model_copy(update={"held_out": HeldOut(every=0, of="captions")})
    made = prepared(native, tmp_path / "run", Corpus("de", german.pairs), config=config)
    assert made.rows["de"] == {"nlt-0000": 94, "nlt-0001": 54}
    assert not (tmp_path / "run" / "data" / "de" / "held-out").exists()


# --- places -------------------------------------------------------------------------------------


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory://runs-{tmp_path.name}"
    else:
        with s3_bucket() as url:
            yield url


@pytest.mark.parametrize("remote", ["memory", "s3"], indirect=True)
def test_a_run_at_a_url_is_the_local_one_to_the_byte(
    native: Native,
    tmp_path: Path,
    tables: dict[str, list[Row]],
    german: Corpus,
    blocks_of: BlocksOf,
    remote: str,
) -> None:
    blocks_of(20)
    config = held_out(size=6)
    prepared(native, tmp_path / "run", german, config=config)
    there = Corpus(
        "de",
        [f"{remote}/tables/{Path(name).name}" for name in german.pairs],
        f"{remote}/tables/le-0000.parquet",
    )
    for name, rows in tables.items():
        write(as_path(f"{remote}/tables/{name}.parquet"), rows)
    half = as_path(f"{remote}/run/data/de/nlt-0000/rows/b.parquet")  # of one that was killed
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b"half")
    prepared(native, as_path(f"{remote}/run"), there, config=config)
    assert tree(as_path(f"{remote}/run")) == tree(tmp_path / "run")
    before = sources([there])
    assert sources([there]) == before
    write(as_path(f"{remote}/tables/nlt-0001.parquet"), pairs(41))
    after = sources([there])
    assert after["de"]["nlt-0000"] == before["de"]["nlt-0000"]
    assert after["de"]["nlt-0001"] != before["de"]["nlt-0001"]


def test_sources_tell_a_changed_file_a_new_file_and_an_added_table(
    tmp_path: Path, german: Corpus
) -> None:
    before = sources([german])
    assert before == sources([german])
    assert {name: len(of) for name, of in before["de"].items()} == dict.fromkeys(before["de"], 1)
    path = Path(german.pairs[0])
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert sources([german])["de"]["nlt-0000"] != before["de"]["nlt-0000"]
    path.write_bytes(data)
    assert sources([german]) == before, "what counts is what is in it"
    folder = Corpus("de", [tmp_path / "folder"])
    write(tmp_path / "folder" / "a.parquet", pairs(3))
    one = sources([folder])
    write(tmp_path / "folder" / "b.parquet", pairs(4))
    assert sources([folder])["de"]["nlt-0000"][:1] == one["de"]["nlt-0000"]
    assert len(sources([folder])["de"]["nlt-0000"]) == 2


# --- several languages --------------------------------------------------------------------------


def test_languages_share_a_vocabulary_and_each_knows_its_own_rows(
    native: Native, tmp_path: Path, blocks_of: BlocksOf
) -> None:
    blocks_of(20)
    made = {
        "de": [row | {"target": f"Haus und Hof {row['target']}"} for row in pairs(40)],
        "hi": [row | {"target": f"लाल छाता {row['target'][5:]}"} for row in pairs(30, "hi")],
    }
    corpora = [
        Corpus(language, [write(tmp_path / f"{language}.tsv", rows)])
        for language, rows in made.items()
    ]
    run = tmp_path / "run"
    prepared(native, run, *corpora)
    init = load((run / "data" / "init.safetensors").read_bytes())
    tokens, padding = init["tokens"].tolist(), tokenizer_of(run).token_to_id("<pad>")
    assert tokens[0] == padding, "row 0 pads"
    assert init["rows"].shape == (len(tokens), native.text.width)
    assert torch.isfinite(init["rows"]).all()
    used = {}
    for language, rows in made.items():
        assert Counter(texts_of(run, language, "nlt-0000")) == said(rows)
        ids = table(run / "data" / language / "nlt-0000")["ids"].to_pylist()
        used[language] = {token for row in ids for token in row}
        own = init[f"own/{language}"]
        assert own.dtype == torch.int64
        assert own.tolist() == sorted(set(own.tolist()))
        assert {tokens[row] for row in own} == used[language] | {padding}
    assert set(tokens) == used["de"] | used["hi"] | {padding}
    assert used["de"] - used["hi"]
    assert used["hi"] - used["de"]
    assert len(tokens) == len(set(tokens))


def test_a_held_out_text_has_rows_of_its_own_language_only(native: Native, tmp_path: Path) -> None:
    first = min((f"other {n}" for n in range(200)), key=key_of)  # so it is held out
    foreign = {"source": first, "target": "छाता", "language": "de"}  # of which only Hindi learns
    german = [*pairs(30), foreign]
    hindi = [row | {"target": f"छाता {n}"} for n, row in enumerate(pairs(30, "hi"))]
    corpora = [
        Corpus("de", [write(tmp_path / "de.jsonl", german)]),
        Corpus("hi", [write(tmp_path / "hi.jsonl", hindi)]),
    ]
    run = tmp_path / "run"
    prepared(native, run, *corpora, config=held_out(size=10))
    init = load((run / "data" / "init.safetensors").read_bytes())
    texts: dict[str, list[str]] = {}
    for row in (*german, *hindi):
        texts.setdefault(row["language"] + key_of(row["source"]), []).append(row["target"])
    for language in ("de", "hi"):
        own = init[f"own/{language}"].numpy()
        tokens = init["tokens"].numpy()[own]
        pack = LanguageTokenizer(tokenizer_of(run), tokens, native.text.context_length)
        for row in held_rows(run, language).to_pylist():
            as_the_pack = [own[ids].tolist() for ids in pack(texts[language + row["key"]])]
            assert row["ids"] in as_the_pack
    held = {row["key"]: row["ids"] for row in held_rows(run).to_pylist()}
    assert len(held[key_of(first)]) == 2, "its frame alone"


def test_the_rows_of_a_bert_are_its_word_embeddings(
    native: Native, tmp_path: Path, bert_folder: Path, corpus: dict[str, list[str]]
) -> None:
    rows = [
        {"source": source, "target": target, "language": "de"}
        for source, target in zip(corpus["en"], corpus["de"], strict=True)
    ]
    path = write(tmp_path / "pairs.tsv", rows)
    config = CONFIG.model_copy(update={"vocabulary": str(bert_folder)})
    prepared(native, tmp_path / "run", Corpus("de", [path]), config=config)
    init = load((tmp_path / "run" / "data" / "init.safetensors").read_bytes())
    bert = load((bert_folder / "model.safetensors").read_bytes())
    embeddings = bert["embeddings.word_embeddings.weight"]
    assert init["tokens"][0] == 0
    np.testing.assert_array_equal(init["rows"], embeddings[init["tokens"].long()])
