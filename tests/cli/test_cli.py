"""The command line's contract, on a user's own files, with a tiny native and a real Ray."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mla_ray import cli
from mla_ray.evaluation.protocols import PROTOCOLS, Protocol
from mla_ray.packs.card import read_card
from tests.support.commands import Mla, Run
from tests.support.natives import MakePack


@dataclass(frozen=True)
class Files:
    pairs: Path
    captions: Path
    config: Path


@pytest.fixture(scope="session")
def files(
    corpus: dict[str, list[str]], pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Files:
    """A user's translation table (TSV), caption table (JSONL with image files) and settings."""
    folder = tmp_path_factory.mktemp("user")
    lines = [f"{en}\t{de}\tde" for en, de in zip(corpus["en"], corpus["de"], strict=True)]
    pairs = folder / "pairs.tsv"
    pairs.write_text("\n".join(["source\ttarget\tlanguage", *lines]) + "\n")
    rows = []
    for number, png in enumerate(pngs):
        (folder / f"{number}.png").write_bytes(png)
        for language in ("en", "de"):
            rows.append(
                {
                    "image_id": f"photo {number}",
                    "image": f"{number}.png",
                    "language": language,
                    "caption": corpus[language][number % 6],
                    "split": "train" if number < 6 else "test",
                }
            )
    captions = folder / "captions.jsonl"
    captions.write_text("\n".join(json.dumps(row) for row in rows))
    config = folder / "config.yaml"
    stage = {"steps": 4, "batch": 4, "lr": 1e-3}
    config.write_text(yaml.safe_dump({"nlt": stage, "le": stage, "vocab_size": 400}))
    return Files(pairs, captions, config)


@pytest.fixture(scope="session")
def german_pack(
    files: Files, native_folder: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    command = (
        f"mla acquire --language de --pairs {files.pairs} --captions {files.captions} "
        f"--native {native_folder} --config {files.config} --out de --json"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit, match="0"):  # Typer's way to leave after success
            cli.main()
    return folder / "de"


def test_acquire_leaves_a_pack_that_verifies(
    mla: Mla, german_pack: Path, native_folder: Path
) -> None:
    assert read_card(german_pack).language == "de"
    run = mla("pack", "verify", german_pack, "--native", native_folder, "--json")
    assert run.code == 0
    assert run.json == {"pack": str(german_pack), "language": "de", "ok": True}


def test_acquiring_again_goes_on_with_the_run_unless_it_may_not(
    mla: Mla,
    files: Files,
    german_pack: Path,
    native_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(german_pack.parent)
    before = (german_pack / "weights.safetensors").read_bytes()
    arguments = ["acquire", "--language", "de", "--pairs", files.pairs, "--native", native_folder]
    arguments += ["--captions", files.captions, "--config", files.config, "--out", "de", "--json"]
    refused = mla(*arguments, "--no-resume")
    assert refused.code == 1
    assert "--resume" in refused.err
    resumed = mla(*arguments)
    assert resumed.code == 0, resumed.err
    assert resumed.json == {"language": "de", "pack": "de", "dropped": 0}
    assert (german_pack / "weights.safetensors").read_bytes() == before


def test_evaluate_prints_the_contract_for_a_pack_and_for_the_native(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path
) -> None:
    common = ["--captions", files.captions, "--native", native_folder, "--json"]
    for extra, language in ((["--pack", german_pack], "de"), (["--language", "en"], "en")):
        run = mla("evaluate", *extra, *common)
        assert run.code == 0, run.err
        result = run.json
        assert isinstance(result, dict)
        assert set(result) >= {"language", "t2i", "i2t", "AR", "images", "captions"}
        assert set(result["unknown_tokens"]) == {"some", "all"}
        assert set(result["t2i"]) == set(result["i2t"]) == {"R@1", "R@5", "R@10"}
        assert (result["language"], result["images"], result["captions"]) == (language, 6, 6)
        assert result["t2i"]["R@10"] == 100.0  # six images: every one is among the first ten


@pytest.fixture
def several(
    corpus: dict[str, list[str]], pngs: list[bytes], make_pack: MakePack, tmp_path: Path
) -> list[object]:
    """Arguments: a table of six images in three languages, and packs for two of them."""
    rows = [
        {
            "image_id": f"photo {number}",
            "image": png,
            "language": language,
            "caption": corpus[language][number],
            "split": "test",
        }
        for language in ("en", "de", "hi")
        for number, png in enumerate(pngs[:6])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    for language in ("de", "hi"):
        make_pack(language).save(tmp_path / language)
    packs = ["--pack", tmp_path / "de", "--pack", tmp_path / "hi"]
    return ["evaluate", "--captions", tmp_path / "captions.parquet", *packs]


def test_several_packs_are_measured_beside_each_other(
    mla: Mla, several: list[object], native_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "threes", Protocol("threes", fold=3, published=("t2i R@1",)))
    command = [*several, "--native", native_folder, "--english", "--protocol", "threes", "-k", 2]
    run = mla(*command, "--intervals", "--json")
    assert run.code == 0, run.err
    result = run.json
    assert isinstance(result, dict)
    assert (result["protocol"], len(result["languages"])) == ("threes", 3)
    assert [each["language"] for each in result["languages"]] == ["en", "de", "hi"]
    for each in result["languages"]:
        assert list(each["t2i"]) == ["R@1", "R@2", "R@5", "R@10"]
        assert each["t2i"]["R@5"] == each["i2t"]["R@10"] == 100.0  # galleries of three
        assert each["published"] == {"t2i R@1": each["t2i"]["R@1"]}
        assert 1 <= each["median rank"]["t2i"] <= 3
        low, high = each["intervals"]["AR"]
        assert low <= each["AR"] <= high
    mean = sum(each["t2i"]["R@2"] for each in result["languages"]) / 3
    assert result["mean"]["t2i"]["R@2"] == round(mean, 2)
    shown = mla(*command, "--intervals")
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["en", "de", "hi", "mean"]
    assert f"{result['mean']['AR']:.1f} [" in lines[-1]


def test_one_language_is_said_at_length(
    mla: Mla, several: list[object], native_folder: Path
) -> None:
    run = mla(*several[:5], "--native", native_folder, "--intervals")
    assert run.code == 0, run.err
    head, t2i, i2t = run.out.splitlines()
    assert head.startswith("de: AR ")
    assert head.endswith("] over 6 captions and 6 images")
    for line in (t2i, i2t):
        assert line.count("[") == 3
        assert "median rank " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "xtd"], "over 1,000 images, and there are 6 in 'de'"),
        (["--protocol", "coco"], "no protocol 'coco'; there are full, multi30k"),
        (["--pack", "de"], "de: 'de' is measured already"),
        (["--language", "de"], "is a pack for 'hi', not for 'de'"),
        (["--split", "train"], "no row of split 'train'"),
    ],
)
def test_what_cannot_be_measured_is_said(
    mla: Mla, several: list[object], native_folder: Path, arguments: list[str], message: str
) -> None:
    run = mla(*several, "--native", native_folder, *arguments)
    assert (run.code, run.out) == (1, "")
    assert message in run.err


def test_a_pack_of_another_language_is_not_evaluated_as_asked(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path
) -> None:
    run = mla(
        *("evaluate", "--pack", german_pack, "--language", "cs"),
        *("--captions", files.captions, "--native", native_folder),
    )
    assert run.code == 1
    assert "is a pack for 'de', not for 'cs'" in run.err


def test_index_then_search_finds_images_and_captions(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path, tmp_path: Path
) -> None:
    url = f"edge:{tmp_path / 'index'}"
    common = ["--native", native_folder, "--index", url, "--json"]
    indexed = mla("index", "--captions", files.captions, "--pack", german_pack, *common)
    assert indexed.code == 0, indexed.err
    nothing, everything = {"images": 0, "captions": 0}, {"images": 12, "captions": 24}
    assert indexed.json == everything | {"encoded": everything, "unchanged": nothing}
    again = ["index", "--captions", files.captions, "--pack", german_pack, *common]
    assert mla(*again).json == everything | {"encoded": nothing, "unchanged": everything}
    assert mla(*again, "--reencode").json == indexed.json
    assert mla(*again[:-1]).out.splitlines() == [
        "images: 12 points (encoded 0, unchanged 12)",
        "captions: 24 points (encoded 0, unchanged 24)",
    ]
    query = ["search", "ein Hund", "--language", "de", "--pack", german_pack, *common]
    images = mla(*query, "-k", "3")
    assert images.code == 0, images.err
    assert isinstance(images.json, list)
    assert len(images.json) == 3
    scores = [hit["score"] for hit in images.json]
    assert scores == sorted(scores, reverse=True)
    assert {hit["unknown_tokens"] for hit in images.json} == {0}
    unknown = mla("search", "犬", *query[2:], "-k", "1")
    assert "100% of the query's tokens are unknown" in unknown.err
    assert [hit["unknown_tokens"] for hit in unknown.json] == [1]
    captions = mla(*query, "-k", "2", "--find", "captions").json
    assert isinstance(captions, list)
    assert {hit["caption"] for hit in captions} == {"ein Hund"}
    assert captions[0]["score"] == pytest.approx(1.0, abs=1e-4)
    hybrid = mla(*query, "-k", "2", "--mode", "hybrid").json
    assert {hit["caption"] for hit in hybrid} == {"ein Hund"}
    assert hybrid[1]["score"] < 1


def test_an_index_is_made_with_the_settings_of_a_file(
    mla: Mla, files: Files, native_folder: Path, tmp_path: Path
) -> None:
    settings, url = tmp_path / "index.yaml", f"edge:{tmp_path / 'index'}"
    settings.write_text("hnsw_m: 8\non_disk_vectors: true\n")
    index = ["index", "--index", url, "--index-settings", settings]
    table = ["--captions", files.captions, "--language", "en", "--native", native_folder]
    made = mla(*index, *table, "--int8", "--no-pictures")
    assert made.code == 0, made.err
    status = mla("index", "--index", url, "--status", "--json").json
    assert isinstance(status, dict)
    for collection in status["collections"]:
        of_file = {"quantization": "int8", "hnsw_m": 8, "on_disk_vectors": True}
        assert collection["settings"].items() >= of_file.items()
    settings.write_text("hnsw_m: 32\n")
    refused = mla(*index, *table)
    assert refused.code == 1
    assert "hnsw_m 8, not 32" in refused.err


def test_pictures_are_kept_in_the_folder_of_the_index_unless_told_otherwise(
    mla: Mla, files: Files, native_folder: Path, tmp_path: Path
) -> None:
    def kept(folder: str) -> int:
        return len(list((tmp_path / folder).rglob("*.webp")))

    index = ["index", "--captions", files.captions, "--language", "en", "--native", native_folder]
    assert mla(*index, "--index", f"edge:{tmp_path / 'a'}").code == 0
    assert kept("a/pictures") == 12
    assert mla(*index, "--index", f"edge:{tmp_path / 'b'}", "--no-pictures").code == 0
    assert kept("b") == 0
    elsewhere = mla(*index, "--index", f"edge:{tmp_path / 'b'}", "--pictures", tmp_path / "kept")
    assert elsewhere.code == 0
    assert (kept("b"), kept("kept")) == (0, 12)
    both = mla(*index, "--index", "edge:c", "--pictures", "p", "--no-pictures")
    assert both.code == 2
    assert "--no-pictures" in both.err


def test_equal_pictures_of_an_evaluated_table_are_counted(
    mla: Mla, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    captions = tmp_path / "captions.parquet"
    pictures = [*pngs[:5], *[pngs[5]] * 4]  # nine images, of which three look like the sixth
    rows = [
        {"image_id": str(n), "image": png, "language": "en", "caption": f"{n}", "split": "test"}
        for n, png in enumerate(pictures)
    ]
    pq.write_table(pa.Table.from_pylist(rows), captions)
    evaluate = ["evaluate", "--captions", captions, "--language", "en", "--native", native_folder]
    run = mla(*evaluate)
    assert run.code == 0, run.err
    assert "warning: 3 of 9 images look like another" in run.err
    pq.write_table(pa.Table.from_pylist(rows[:6]), captions)
    assert "warning" not in mla(*evaluate).err


def test_a_search_shows_nothing_below_the_score_asked_for(
    mla: Mla, files: Files, native_folder: Path, tmp_path: Path
) -> None:
    common = ["--native", native_folder, "--index", f"edge:{tmp_path / 'index'}", "--json"]
    mla("index", "--captions", files.captions, "--language", "en", *common)
    query = ["search", "a dog", *common]
    scores = [hit["score"] for hit in mla(*query).json]
    assert scores == sorted(scores, reverse=True)
    above = mla(*query, "--min-score", str(scores[3])).json
    assert [hit["score"] for hit in above] == [score for score in scores if score >= scores[3]]
    assert mla(*query, "--min-score", "1.5").code == 2


def test_sync_makes_the_index_equal_to_the_table(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path, tmp_path: Path
) -> None:
    url, pictures = f"edge:{tmp_path / 'index'}", tmp_path / "pictures"
    common = ["--native", native_folder, "--index", url, "--pack", german_pack, "--json"]
    common += ["--pictures", pictures]
    for source in ("ours", "theirs"):
        run = mla("index", "--captions", files.captions, "--source", source, *common)
        assert run.code == 0, run.err
    rows = [json.loads(line) for line in files.captions.read_text().splitlines()]
    there = files.captions.parent
    left = [
        {**row, "image": str(there / row["image"])} for row in rows if row["image_id"] != "photo 3"
    ]
    left[0]["caption"] = "a dog, mended"
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in left))
    synced = ["index", "--captions", table, "--source", "ours", "--sync"]
    run = mla(*synced, *common)
    assert run.code == 0, run.err
    removed = {"images": 1, "captions": 3, "pictures": 1}
    assert run.json == {
        "images": 11,
        "captions": 22,
        "encoded": {"images": 0, "captions": 1},
        "unchanged": {"images": 11, "captions": 21},
        "removed": removed,
    }
    again = mla(*synced, *[option for option in common if option != "--json"])
    assert again.out.splitlines()[-1] == "removed: 0 images, 0 captions, 0 pictures"

    def found(find: str) -> list[tuple[str, str, str, str]]:
        query = ["search", "a dog", "--find", find, "-k", 100, *common[:4], "--json"]
        hits = mla(*query).json
        assert isinstance(hits, list)
        return sorted((h["source"], h["image_id"], h["language"], h["caption"]) for h in hits)

    sources = [("ours", left), ("theirs", rows)]
    captions = [
        (source, row["image_id"], row["language"], row["caption"])
        for source, those in sources
        for row in those
    ]
    assert found("captions") == sorted(captions)
    images = {(source, row["image_id"], "", "") for source, those in sources for row in those}
    assert found("images") == sorted(images)
    assert len(list(pictures.rglob("*.webp"))) == 23


def test_entries_are_removed_by_their_source_language_and_image(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path, tmp_path: Path
) -> None:
    url = f"edge:{tmp_path / 'index'}"
    common = ["--native", native_folder, "--index", url]
    for source in ("ours", "theirs"):
        table = ["--captions", files.captions, "--pack", german_pack, "--source", source]
        assert mla("index", *table, *common).code == 0
    delete = ["index", "--delete", *common, "--source", "ours", "--json"]

    def left(find: str) -> int:
        hits = mla("search", "a dog", "--find", find, "-k", 100, *common, "--json").json
        return len(hits)

    counted = mla(*delete, "--dry-run")
    assert counted.json == {"would_remove": {"images": 12, "captions": 24}}, counted.err
    assert (left("images"), left("captions")) == (24, 48)
    german = mla(*delete, "--language", "de")
    assert german.json == {"removed": {"captions": 12}}, german.err
    one = mla(*delete, "--image-id", "photo 3")
    assert one.json == {"removed": {"images": 1, "captions": 1, "pictures": 1}}
    rest = mla(*delete[:-1], "--optimize")
    assert rest.out.splitlines() == ["removed: 11 captions, 11 pictures, 11 images", "optimized"]
    assert (left("images"), left("captions")) == (12, 24)
    assert len(list((tmp_path / "index" / "pictures").rglob("*.webp"))) == 12
    stored = [path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert any(b"theirs" in data for data in stored)
    assert not any(b"ours" in data for data in stored)
    assert mla("index", "--optimize", *common, "--json").json == {"optimized": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --captions, --status, --delete or --optimize"),
        (["--delete"], "--delete needs --source, --language or --image-id"),
        (["--delete", "--source", "a", "--captions", "a.csv"], "--captions does not go with"),
        (["--optimize", "--sync"], "--sync does not go with --delete or --optimize"),
        (["--captions", "a.csv", "--dry-run"], "--dry-run go with --delete"),
        (["--optimize", "--image-id", "a"], "--dry-run go with --delete"),
        (["--delete", "--source", "a", "--dry-run", "--optimize"], "does not go with --optimize"),
    ],
)
def test_what_does_not_go_with_a_removal_is_refused(
    mla: Mla, tmp_path: Path, options: list[str], message: str
) -> None:
    run = mla("index", "--index", f"edge:{tmp_path / 'index'}", *options)
    assert run.code == 2
    assert message in " ".join(run.err.replace("│", " ").split())
    assert not (tmp_path / "index").exists()


def test_sync_compares_with_the_whole_table_whatever_is_indexed_of_it(
    mla: Mla, files: Files, native_folder: Path, tmp_path: Path
) -> None:
    """A language alone, and rows that cannot be read, are in the table all the same."""
    url = f"edge:{tmp_path / 'index'}"
    common = ["--native", native_folder, "--index", url, "--source", "s", "--language", "en"]
    rows = [json.loads(line) for line in files.captions.read_text().splitlines()]
    english = [row for row in rows if row["language"] == "en"]
    table = tmp_path / "table.jsonl"

    def write(rows: list[dict[str, str]]) -> None:
        paths = [str(files.captions.parent / row["image"]) for row in rows]
        lines = [json.dumps(row | {"image": p}) for row, p in zip(rows, paths, strict=True)]
        table.write_text("\n".join(lines))

    write(english)
    assert mla("index", "--captions", table, *common).code == 0
    broken = [
        row | {"image": "nowhere.png"} if row["image_id"] == "photo 1" else row for row in rows
    ]
    write([row | {"language": "de"} for row in broken[:4]] + broken[4:])
    run = mla("index", "--captions", table, *common, "--sync", "--skip-invalid", "--json")
    assert run.code == 0, run.err
    # Gone are the English captions of the two rows that are German now, nothing else.
    assert run.json["removed"] == {"images": 0, "captions": 2, "pictures": 0}


def test_search_for_a_language_without_a_pack_says_where_it_looked(
    mla: Mla, native_folder: Path, tmp_path: Path
) -> None:
    run = mla(
        *("search", "mbwa", "--language", "sw", "--native", native_folder),
        *("--index", f"edge:{tmp_path / 'index'}"),
    )
    assert run.code == 1
    assert "packs/sw/card.json: missing" in run.err


BAD_LINES = {
    "a dog\t\tde": "line 8: 'target' is empty",
    "a dog\tein Hund\tde": "line 8: ",
    "a dog\tein Köter\tklingon": "line 8: ",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items())
def test_bad_pairs_are_refused_before_training(
    mla: Mla,
    files: Files,
    native_folder: Path,
    ray_cluster: None,
    tmp_path: Path,
    line: str,
    message: str,
) -> None:
    refused = _acquire_with(line, mla, files, native_folder, tmp_path)
    assert refused.code == 1
    assert f"bad.tsv {message}" in refused.err
    assert "--skip-invalid" in refused.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_pairs_are_dropped_if_asked(
    mla: Mla, files: Files, native_folder: Path, ray_cluster: None, tmp_path: Path, line: str
) -> None:
    kept = _acquire_with(line, mla, files, native_folder, tmp_path, "--skip-invalid")
    assert kept.code == 0, kept.err
    assert kept.json == {"language": "de", "pack": "packs/de", "dropped": 1}


def _acquire_with(
    line: str, mla: Mla, files: Files, native_folder: Path, tmp_path: Path, *options: str
) -> Run:
    """Acquire German from the pairs with one more line."""
    bad = tmp_path / "bad.tsv"
    bad.write_text(files.pairs.read_text() + line + "\n")
    arguments = ["acquire", "--language", "de", "--pairs", bad, "--native", native_folder]
    arguments += ["--config", files.config, "--out", "packs/de", "--json"]
    return mla(*arguments, *options)


def test_unknown_settings_are_refused_by_name(
    mla: Mla, files: Files, native_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("learning_rate: 1.0\n")
    run = mla(
        *("acquire", "--language", "de", "--pairs", files.pairs, "--native", native_folder),
        *("--config", config, "--out", "packs/de"),
    )
    assert run.code == 1
    assert "config.yaml" in run.err
    assert "learning_rate" in run.err


def test_help_needs_neither_torch_nor_ray() -> None:
    code = "import sys, mla_ray.cli; print([m for m in ('torch', 'ray') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
