"""Promises of mla_ray.pipeline.pipeline, and of jobs and commands with everything in S3."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mla_ray.data.table_reader import InvalidTable
from mla_ray.index.collection import CAPTIONS, CaptionIndex
from mla_ray.index.ingest import space_of
from mla_ray.index.status import status_of
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.pipeline.pipeline import Pipeline
from mla_ray.pipeline.plan import Plan
from mla_ray.runtime.progress import Stopped
from mla_ray.runtime.storage import as_path, names_in, read_json
from mla_ray.training import acquisition as training
from mla_ray.training.encode_features import Failure, Filled
from tests.support import ROOT
from tests.support.emoji import Dictionaries, only_a_few
from tests.support.natives import MakePack
from tests.support.s3 import s3_bucket


def plan(**settings: Any) -> Plan:
    return Plan.model_validate({"languages": ["de"], "pairs": ["pairs.tsv"]} | settings)


# --- languages beside each other, of which only the tables are prepared -------------------------


@pytest.fixture
def local(native_folder: Path, tmp_path: Path) -> Callable[..., Pipeline]:
    def work(*languages: str, **settings: Any) -> Pipeline:
        for language in languages:
            rows = "".join(f"thing {n}\tDing {n} {language}\n" for n in range(9))
            (tmp_path / f"{language}.tsv").write_text("source\ttarget\n" + rows)
        return Pipeline.load(
            plan(
                languages=list(languages),
                native=str(native_folder),
                pairs=[str(tmp_path / "{language}.tsv")],
                run=str(tmp_path / "run"),
                train={"vocab_size": 400},
                **settings,
            )
        )

    return work


@pytest.mark.parametrize("parallel", [1, 3])
def test_languages_have_a_run_each_and_their_results_are_in_order(
    local: Callable[..., Pipeline], tmp_path: Path, parallel: int
) -> None:
    work = local("hi", "cs", "de", parallel=parallel)
    made = work.run(("prepare",))
    assert list(made) == ["hi", "cs", "de"]
    assert made["cs"] == {"prepare": {"rows": {"nlt-0000": 9}, "dropped": 0}}
    assert read_json(as_path(tmp_path / "run" / "result.json")) == made
    for language in made:
        assert (tmp_path / "run" / language / "data" / "prepared.json").exists()
    assert work.run(("prepare",)) == made


def test_a_language_that_fails_takes_no_other_with_it_and_may_be_mended(
    local: Callable[..., Pipeline], tmp_path: Path
) -> None:
    work = local("hi", "cs", "de")
    table = tmp_path / "cs.tsv"
    whole = table.read_text()
    table.write_text(whole + "thing 10\t\n")
    with pytest.raises(ExceptionGroup, match="1 of 3 languages") as failed:
        work.run(("prepare",))
    (error,) = failed.value.exceptions
    assert isinstance(error, InvalidTable)
    assert f"{table} line 11: 'target' is empty" in str(error)
    assert error.__notes__ == ["language cs"]
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "cs").exists()
    for language in ("hi", "de"):
        assert (tmp_path / "run" / language / "data" / "prepared.json").exists()
    table.write_text(whole)
    assert work.run(("prepare",))["cs"] == {"prepare": {"rows": {"nlt-0000": 9}, "dropped": 0}}
    table.write_text(whole + "thing 10\tDing\n")
    with pytest.raises(ExceptionGroup) as refused:
        work.run(("prepare",))
    (error,) = refused.value.exceptions
    assert "cannot resume, sources differ" in str(error)


def test_who_asks_for_an_end_is_told_how_to_go_on(
    local: Callable[..., Pipeline], tmp_path: Path
) -> None:
    work = local("hi", "de")
    work.stop = threading.Event()
    work.stop.set()
    with pytest.raises(Stopped, match="run the same again to go on"):
        work.run(("prepare",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trained", [False, True])
def test_a_broken_image_is_refused_and_costs_nothing_that_was_trained(
    local: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: bool
) -> None:
    work = local("de")
    run = tmp_path / "run" / "de"
    if trained:  # with --skip-invalid, and then resumed without
        work.run(("prepare",))
        (run / "checkpoints" / "0000000007").mkdir(parents=True)
    failure = Failure("captions.parquet", 3, "is broken")
    monkeypatch.setattr(training, "encode", lambda *_: Filled(1, 1, [failure]))
    with pytest.raises(ExceptionGroup) as failed:
        work.run(("acquire",))
    (error,) = failed.value.exceptions
    assert "captions.parquet row 3: image is broken; drop the row or pass" in str(error)
    assert (run / "run.json").exists() == (run / "data").exists() == trained


# --- the index, of several languages --------------------------------------------------------------


def documented_plan() -> dict[str, Any]:
    """The plan that docs/jobs.md shows."""
    block = (ROOT / "docs" / "jobs.md").read_text().split("```yaml\n")[1].split("```")[0]
    document: dict[str, Any] = yaml.safe_load(block)
    return document


@pytest.mark.usefixtures("indexing")
def test_languages_of_the_documented_plan_are_indexed_from_the_table_they_share(
    native: Native,
    native_folder: Path,
    make_pack: MakePack,
    corpus: dict[str, list[str]],
    pngs: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a language of the table that is not the plan's is passed over."""
    monkeypatch.chdir(tmp_path)
    document = documented_plan()
    languages = document["languages"]
    assert len(languages) > 1
    assert "{language}" not in document["captions"]
    texts = {language: f"de{n}" for n, language in enumerate(languages)} | {"en": "en", "fr": "fr"}
    rows = [
        {"image_id": n, "image": f"{n}.png", "language": language, "caption": f"{name} {n}"}
        for language, name in texts.items()
        for n in range(6)
    ]
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for number in range(6):
        (folder / f"{number}.png").write_bytes(pngs[number])
    document |= {
        "native": str(native_folder),
        "pairs": ["pairs.tsv"],
        "captions": "tables/captions.jsonl",
        "data": str(tmp_path / "data"),
        "run": str(tmp_path / "run"),
        "index": f"edge:{tmp_path / 'index'}",
        "index_settings": {"hnsw_m": 8},
    }
    for language in languages:
        make_pack(language, texts=corpus["de"]).save(tmp_path / "run" / "packs" / language)
    done = Pipeline.load(Plan.model_validate(document)).run(("index",))
    written, nothing = {"images": 6, "captions": 24}, {"images": 0, "captions": 0}
    expected = {"written": written, "unchanged": nothing, "rejected": 0, "with": languages}
    assert done == {language: {"index": expected} for language in languages}
    again = Pipeline.load(Plan.model_validate(document)).run(("index",))
    expected["unchanged"] = written
    assert again == {language: {"index": expected} for language in languages}
    with CaptionIndex.open(document["index"], space_of(native), CAPTIONS, create=False) as index:
        assert index.languages() == {"en": 6} | dict.fromkeys(languages, 6)
    for collection in status_of(document["index"]).collections:
        assert collection.settings.hnsw_m == 8


def test_an_index_step_without_a_pack_names_it(native_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image_id,image,language,caption\n1,1.png,de,Hund\n")
    work = Pipeline.load(
        plan(
            native=str(native_folder),
            captions=str(tmp_path / "captions.csv"),
            run=str(tmp_path / "run"),
            index=f"edge:{tmp_path / 'index'}",
        )
    )
    with pytest.raises(ExceptionGroup, match="the index") as failed:
        work.run(("index",))
    assert "run `acquire` first" in str(failed.value.exceptions[0])


def captioned(
    folder: Path, pngs: list[bytes], splits: dict[str, list[str]], **columns: list[str] | None
) -> str:
    """A table with a caption of each image, for each language and split."""
    rows = [
        {"image_id": f"{n}", "image": png, "language": language, "caption": f"{language} {n}"}
        | {"split": split}
        for language, its in splits.items()
        for split in its
        for n, png in enumerate(pngs)
    ]
    path = folder / "captions.parquet"
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.drop_columns([n for n, kept in columns.items() if kept is None]), path)
    return str(path)


@pytest.mark.usefixtures("indexing")
def test_a_table_without_a_split_test_is_indexed_and_the_evaluation_says_why_it_is_none(
    local: Callable[..., Pipeline], make_pack: MakePack, pngs: list[bytes], tmp_path: Path
) -> None:
    """As the paper's CC300K is."""
    captions = captioned(tmp_path, pngs, {"de": ["train"], "en": ["train", "test"]})
    work = local("de", captions=captions, index=f"edge:{tmp_path / 'index'}")
    make_pack("de").save(tmp_path / "run" / "packs" / "de")
    made = work.run(("evaluate", "index"))["de"]
    why = f"{captions} has no row of split 'test' in 'de'; rows found: train (12)"
    assert made["evaluate"] == {"skipped": why}
    assert read_json(as_path(tmp_path / "run" / "de" / "evaluation.json")) == {"skipped": why}
    assert sum(made["index"]["written"].values()) > 12
    without = local("de")
    assert without.run(("evaluate",))["de"] == {
        "evaluate": {"skipped": "there is no caption table"}
    }


def test_english_is_measured_on_english_rows_alone(
    local: Callable[..., Pipeline], make_pack: MakePack, pngs: list[bytes], tmp_path: Path
) -> None:
    """A table without a column of languages is all in the plan's: nothing in it is English."""
    for column, measured in ((["de"], {"pack", "en"}), (None, {"pack"})):
        languages = {"de": ["test"], "en": ["test"]} if column else {"de": ["train", "test"]}
        captions = captioned(tmp_path, pngs, languages, language=column)
        work = local("de", captions=captions)
        make_pack("de").save(tmp_path / "run" / "packs" / "de")
        found = work.evaluate("de")
        assert found.keys() == measured
        assert found["pack"]["language"] == "de"
        assert found["pack"]["captions"] == 12
        assert found["pack"]["unknown_tokens"].keys() == {"some", "all"}


def test_a_run_that_has_begun_goes_on_when_a_dictionary_comes_back(
    native_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(run: str) -> Pipeline:
        settings = {
            "dataset": "emoji",
            "data": str(tmp_path / "data"),
            "train": {"vocab_size": 400},
        }
        place = {"native": str(native_folder), "run": str(tmp_path / run)}
        return Pipeline.load(plan(pairs=[], **settings, **place))

    only_a_few(monkeypatch)
    dictionaries = Dictionaries(monkeypatch)
    made = work("begun").run(("prepare",))
    assert made["de"]["prepare"]["rows"]["nlt-0001"] == 1
    dictionaries.away = False
    assert work("new").run(("prepare",))["de"]["prepare"]["rows"]["nlt-0001"] == 4
    assert work("begun").run(("prepare",)) == made


# --- the whole path, all of it in S3 ------------------------------------------------------------

WORDS = {
    "en": ("dog", "cat", "boat", "sun", "umbrella", "grapes"),
    "de": ("Hund", "Katze", "Boot", "Sonne", "Schirm", "Trauben"),
    "cs": ("pes", "kočka", "loď", "slunce", "deštník", "hrozny"),
}
BAD_ROW, BROKEN = 13, b"no image at all"
STAGE = {"steps": 12, "batch": 4, "lr": 1e-3}
TRAIN = {"nlt": STAGE, "le": STAGE, "vocab_size": 400, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def bucket(pngs: list[bytes]) -> Iterator[str]:
    """Tables of German, and of Czech, in which a translation is empty and an image broken."""
    with s3_bucket() as url:
        for language in ("de", "cs"):
            bad = language == "cs"
            pairs = [
                {"source": f"{many}{en}", "target": f"{many}{word}", "language": language}
                for many in ("", "the ")
                for en, word in zip(WORDS["en"], WORDS[language], strict=True)
            ]
            pairs += [{"source": "nothing", "target": "", "language": language}] * bad
            captions = [
                {
                    "image_id": f"image {number}",
                    "image": BROKEN if bad and number == 4 else pngs[number],
                    "language": tongue,
                    "caption": WORDS[tongue][number % 6],
                    "split": "train" if number < 6 else "test",
                }
                for number in range(12)
                for tongue in ("en", language)
            ]
            for name, rows in (("pairs", pairs), ("captions", captions)):
                with as_path(f"{url}/tables/{name}-{language}.parquet").open("wb") as file:
                    pq.write_table(pa.Table.from_pylist(rows), file)
        yield url


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


def command(*arguments: str) -> Ended:
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=900, cwd=ROOT, env=dict(os.environ)
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def stored(url: str) -> dict[str, bytes]:
    """All files under a URL."""
    folder = as_path(url)
    return {file: folder.fs.cat_file(file) for file in folder.fs.find(folder.path)}


@dataclass(frozen=True)
class Run:
    """A job that has ended, and what was in the bucket then."""

    ended: Ended
    files: dict[str, bytes]

    def part(self, *names: str) -> dict[str, bytes]:
        return {
            name: data
            for name, data in self.files.items()
            if all(f"/{part}" in name for part in names)
        }


@pytest.fixture(scope="module")
def runs(
    bucket: str, native_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """The same plan three times: as it is, with --skip_invalid, and once more."""
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    document = {
        "languages": ["cs", "de"],
        "native": str(native_folder),
        "pairs": [f"{bucket}/tables/pairs-{{language}}.parquet"],
        "captions": f"{bucket}/tables/captions-{{language}}.parquet",
        "data": f"{bucket}/data",
        "run": f"{bucket}/run",
        "packs": f"{bucket}/packs",
        "train": TRAIN,
        "worker_cpus": 1,
        "encoders": 1,
        "parallel": 2,
    }
    file.write_text(yaml.safe_dump(document))
    job = [sys.executable, "-m", "jobs.pipeline", "--config", str(file)]
    made = {}
    for name, flags in (
        ("refused", []),
        ("skipped", ["--skip_invalid"]),
        ("again", ["--skip_invalid"]),
    ):
        ended = command(*job, *flags)
        made[name] = Run(ended, stored(bucket))
    return made


@pytest.mark.slow
def test_a_bad_table_ends_the_job_as_bad_input_and_the_other_language_is_finished(
    runs: dict[str, Run], bucket: str
) -> None:
    run = runs["refused"]
    assert run.ended.code == 1, run.ended.err
    assert run.ended.out == ""
    place = f"{bucket}/tables/pairs-cs.parquet row {BAD_ROW}: 'target' is empty"
    assert place in run.ended.err
    assert "language cs" in run.ended.err
    assert "Traceback" not in run.ended.err
    assert not run.part("run/cs/")
    assert not run.part("packs/cs/")
    assert len(run.part("packs/de/", "card.json")) == 1
    assert len(run.part("run/de/", "evaluation.json")) == 1


@pytest.mark.slow
def test_with_bad_rows_skipped_both_languages_are_done_and_counted(
    runs: dict[str, Run], bucket: str
) -> None:
    run = runs["skipped"]
    assert run.ended.code == 0, run.ended.err
    made = run.ended.json
    assert list(made) == ["cs", "de"]
    assert made["cs"]["prepare"] == {"rows": {"nlt-0000": 12, "le-0000": 6}, "dropped": 1}
    assert made["de"]["prepare"] == {"rows": {"nlt-0000": 12, "le-0000": 6}, "dropped": 0}
    assert made["cs"]["encode"]["failed"] == 1
    assert f"{bucket}/tables/captions-cs.parquet row 10: image is none of PNG" in run.ended.err
    for language in ("cs", "de"):
        assert made[language]["acquire"] == {"pack": f"{bucket}/packs/{language}"}
    (result,) = run.part("run/result.json").values()
    assert json.loads(result) == made


@pytest.mark.slow
def test_packs_and_their_evaluation_are_in_the_store(
    runs: dict[str, Run], bucket: str, native_folder: Path
) -> None:
    native = Native.load(str(native_folder))
    for language in ("cs", "de"):
        pack = LanguagePack.load(f"{bucket}/packs/{language}", native)
        assert pack.card.language == language
        assert pack.card.stages.keys() == {"nlt", "le"}
        assert np.isfinite(pack.encode_text(list(WORDS[language])).numpy()).all()
        measured = read_json(as_path(f"{bucket}/run/{language}/evaluation.json"))
        assert measured == runs["skipped"].ended.json[language]["evaluate"]
        assert measured.keys() == {"pack", "en"}
        for figures in measured.values():
            assert figures["images"] == figures["captions"] == 6
            assert figures["t2i"]["R@10"] == figures["i2t"]["R@10"] == 100


@pytest.mark.slow
def test_what_is_done_is_not_done_again(runs: dict[str, Run]) -> None:
    first, second, third = runs.values()
    for name, data in first.part("run/de/").items():
        assert second.files[name] == data, name
    for name, data in second.part("run/").items():
        if not name.endswith("run/result.json"):  # of what was computed and written this time
            assert third.files[name] == data, name
    assert second.files.keys() == third.files.keys(), "not one new part of features"
    for language in ("cs", "de"):
        (metrics,) = second.part(f"run/{language}/metrics.jsonl").values()
        rows = [json.loads(line) for line in metrics.decode().splitlines()]
        assert [(row["stage"], row["step"]) for row in rows] == [
            *(("nlt", 10), ("nlt", 12), ("le", 10), ("le", 12))
        ]
        for name, data in second.part(f"packs/{language}/").items():
            assert third.files[name] == data, name
    assert third.ended.code == 0, third.ended.err
    again = third.ended.json
    assert again["cs"]["encode"] == {"computed": 0, "failed": 1}
    assert again["de"]["encode"] == {"computed": 0, "failed": 0}
    for step in ("prepare", "acquire", "evaluate"):
        for language in ("cs", "de"):
            assert again[language][step] == second.ended.json[language][step]


@pytest.mark.slow
def test_the_commands_take_urls_for_everything(
    bucket: str, native_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(TRAIN))
    mla, root = str(Path(sys.executable).parent / "mla"), f"{bucket}/by-hand"
    captions = ["--captions", f"{bucket}/tables/captions-de.parquet"]
    common = ["--native", str(native_folder), "--json"]
    acquired = command(
        *(mla, "acquire", "--language", "de", "--pairs", f"{bucket}/tables/pairs-de.parquet"),
        *(*captions, "--config", str(config), "--out", f"{root}/packs/de"),
        *("--run", f"{root}/run", "--data", f"{root}/data", *common),
    )
    assert acquired.code == 0, acquired.err
    assert acquired.json == {"language": "de", "pack": f"{root}/packs/de", "dropped": 0}
    assert read_card(f"{root}/packs/de").stages.keys() == {"nlt", "le"}
    assert {"run.json", "done.json", "packs", "data"} <= set(names_in(as_path(f"{root}/run")))
    assert names_in(as_path(f"{root}/data/features"))
    for who, language in ((["--pack", f"{root}/packs/de"], "de"), (["--language", "en"], "en")):
        measured = command(mla, "evaluate", *who, *captions, *common)
        assert measured.code == 0, measured.err
        assert (measured.json["language"], measured.json["images"]) == (language, 6)
        assert measured.json["t2i"]["R@10"] == 100
