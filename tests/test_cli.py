"""The command line's contract, on a user's own files, with a tiny native and a real Ray."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mla_ray import cli
from mla_ray.pack import read_card


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Mla = Callable[..., Run]


@pytest.fixture
def mla(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mla:
    """Run `mla` as its entry point does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["mla", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


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


def test_acquiring_again_is_refused_without_resume(
    mla: Mla, files: Files, native_folder: Path, ray_cluster: None
) -> None:
    arguments = ["acquire", "--language", "de", "--pairs", files.pairs, "--native", native_folder]
    arguments += ["--config", files.config, "--out", "packs/de", "--json"]
    first = mla(*arguments)
    assert first.code == 0
    assert first.json == {"language": "de", "pack": "packs/de", "dropped": 0}
    again = mla(*arguments)
    assert again.code == 1
    assert "--resume" in again.err
    assert mla(*arguments, "--resume").code == 0


def test_evaluate_prints_the_contract_for_a_pack_and_for_the_native(
    mla: Mla, files: Files, german_pack: Path, native_folder: Path
) -> None:
    common = ["--captions", files.captions, "--native", native_folder, "--json"]
    for extra, language in ((["--pack", german_pack], "de"), (["--language", "en"], "en")):
        run = mla("evaluate", *extra, *common)
        assert run.code == 0, run.err
        result = run.json
        assert isinstance(result, dict)
        assert set(result) == {"language", "t2i", "i2t", "AR", "images", "captions"}
        assert set(result["t2i"]) == set(result["i2t"]) == {"R@1", "R@5", "R@10"}
        assert (result["language"], result["images"], result["captions"]) == (language, 6, 6)
        assert result["t2i"]["R@10"] == 100.0  # six images: every one is among the first ten


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
    assert indexed.json == {"images": 12, "captions": 24}
    again = mla("index", "--captions", files.captions, "--pack", german_pack, *common)
    assert again.json == indexed.json
    query = ["search", "ein Hund", "--language", "de", "--pack", german_pack, *common]
    images = mla(*query, "-k", "3")
    assert images.code == 0, images.err
    assert isinstance(images.json, list)
    assert len(images.json) == 3
    scores = [hit["score"] for hit in images.json]
    assert scores == sorted(scores, reverse=True)
    captions = mla(*query, "-k", "2", "--find", "captions").json
    assert isinstance(captions, list)
    assert {hit["caption"] for hit in captions} == {"ein Hund"}
    assert captions[0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_search_for_a_language_without_a_pack_says_where_it_looked(
    mla: Mla, native_folder: Path, tmp_path: Path
) -> None:
    run = mla(
        *("search", "mbwa", "--language", "sw", "--native", native_folder),
        *("--index", f"edge:{tmp_path / 'index'}"),
    )
    assert run.code == 1
    assert "packs/sw/card.json: missing" in run.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a dog\t\tde", "line 8: 'target' is empty"),
        ("a dog\tein Hund\tde", "line 8: "),
        ("a dog\tein Köter\tklingon", "line 8: "),
    ],
)
def test_bad_pairs_are_refused_before_training_and_dropped_if_asked(
    mla: Mla,
    files: Files,
    native_folder: Path,
    ray_cluster: None,
    tmp_path: Path,
    line: str,
    message: str,
) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text(files.pairs.read_text() + line + "\n")
    arguments = ["acquire", "--language", "de", "--pairs", bad, "--native", native_folder]
    arguments += ["--config", files.config, "--out", "packs/de", "--json"]
    refused = mla(*arguments)
    assert refused.code == 1
    assert f"bad.tsv {message}" in refused.err
    assert "--skip-invalid" in refused.err
    assert not (tmp_path / "runs").exists()
    kept = mla(*arguments, "--skip-invalid")
    assert kept.code == 0, kept.err
    assert kept.json == {"language": "de", "pack": "packs/de", "dropped": 1}


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
