"""Promises of `mla reproduce`: records that are kept, and figures that are right."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mla_ray.data.corpus import Corpus
from mla_ray.data.video import DECODING
from mla_ray.datasets import stamps
from mla_ray.datasets.debian import Unavailable
from mla_ray.evaluation.evaluation import Gallery
from mla_ray.evaluation.recall import Ranks
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import from_hugging_face
from mla_ray.reproduce import ablation_data, bert, grid, page
from mla_ray.reproduce import ablations as ab
from mla_ray.reproduce.ablation_data import AblationData, part_of, prepare_data
from mla_ray.reproduce.claims import claims, verdict, verdict_of_loss
from mla_ray.reproduce.figures import Figure, Results, figure, per_image
from mla_ray.reproduce.records import ENGLISH, Records, begin_with
from mla_ray.reproduce.reworded import reworded
from mla_ray.reproduce.runs import BESIDE, NOTHING, REWORDED, english
from mla_ray.runtime.progress import Progress, Report, Stopped
from tests.support.emoji import Dictionaries, only_a_few

FEW = {"nlt": {"steps": 8, "batch": 8}, "le": {"steps": 2, "batch": 8}, "vocab_size": 400}
LANGUAGES = ("de", "hi")
VARIANTS = (
    ab.Variant("both", FEW),
    ab.Variant("no acquirers", FEW | {"acquirers": False}),
    ab.Variant("a half", FEW, share=0.5),
    ab.Variant("together", FEW, together=True),
    ab.Variant("tower", FEW | {"acquirers": False}, how="tower"),
    ab.Variant("packs in turn", FEW, how="packs in turn"),
    ab.Variant("tower in turn", FEW | {"acquirers": False}, how="tower in turn"),
)
TABLE = ab.Table("some", "Some", VARIANTS)


@pytest.fixture(scope="module")
def material(
    corpus: dict[str, list[str]],
    pngs: list[bytes],
    native_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AblationData:
    folder = tmp_path_factory.mktemp("material")
    (folder / "tests").mkdir()
    names = [f"image {n}" for n in range(len(corpus["en"]))]
    corpora = {}
    for language in LANGUAGES:
        pairs = {"source": corpus["en"], "target": corpus[language], "language": [language] * 6}
        pq.write_table(pa.table(pairs), folder / f"pairs-{language}.parquet")
        rows = [
            {"image_id": name, "image": png, "language": tag, "caption": text, "split": "train"}
            for tag in ("en", language)
            for name, png, text in zip(names, pngs, corpus[tag], strict=False)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"captions-{language}.parquet")
        corpora[language] = Corpus(
            language,
            [str(folder / f"pairs-{language}.parquet")],
            str(folder / f"captions-{language}.parquet"),
        )
    native = Native.load(str(native_folder))
    images = pa.table({"image_id": names, "image": pa.array(pngs[:6], pa.binary())})
    gallery = Gallery.of(native, images)
    np.savez(folder / "tests" / "emoji.npz", ids=np.array(gallery.ids), features=gallery.features)
    captions = [
        {"image_id": name, "language": tag, "caption": text}
        for tag in ("en", *LANGUAGES)
        for name, text in zip(names, corpus[tag], strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(captions), folder / "tests" / "emoji.parquet")
    return AblationData(
        str(native_folder),
        str(folder / "features"),
        corpora,
        str(folder / "tests"),
        ("emoji",),
        "",
    )


@pytest.fixture(scope="module")
def records(
    material: AblationData, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Records:
    """Stopped after the first runs, then gone on with."""
    folder, stop = tmp_path_factory.mktemp("reproduce"), threading.Event()

    def report(step: Progress) -> None:
        if step.phase == "runs" and step.done >= 2:
            stop.set()

    with pytest.raises(Stopped):
        grid.measure_all(ab.runs([TABLE], LANGUAGES, [0]), material, folder, report, stop)
    before = (folder / "records.jsonl").read_text()
    assert before.count("\n") >= 3, "English and two runs"
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"run": "torn')
    runs = ab.runs([TABLE], LANGUAGES, [0])
    records = grid.measure_all(runs, material, folder, lambda step: None)
    assert (folder / "records.jsonl").read_text().startswith(before), "nothing was done again"
    return records


def places(records: Records, variant: ab.Variant, *languages: str) -> dict[str, object]:
    record = records.get(ab.Run(variant, languages, 0))
    assert record is not None
    return dict(record["places"])


@pytest.mark.slow
def test_every_run_has_one_record(records: Records) -> None:
    lines = [json.loads(line) for line in records.path.read_text().splitlines()]
    keys = [line["run"] for line in lines]
    expected = {run.key for run in ab.runs([TABLE], LANGUAGES, [0])} | {ENGLISH}
    assert len(keys) == len(set(keys))
    assert set(keys) == expected
    scratch = records.path.parent / grid.SCRATCH
    assert not scratch.exists() or not list(scratch.iterdir()), "what runs made is gone"


@pytest.mark.slow
def test_packs_leave_english_and_each_other_as_they_are(
    records: Records,
) -> None:
    packs = places(records, VARIANTS[5], *LANGUAGES)
    english = [packs[f"emoji after {n}"]["en"] for n in range(3)]  # type: ignore[index]
    assert english[0] == english[1] == english[2]
    assert packs["emoji after 1"]["de"] == packs["emoji after 2"]["de"]  # type: ignore[index]
    assert set(packs["emoji after 2"]) == {"en", "de", "hi"}  # type: ignore[call-overload]


def test_english_has_the_stamps_of_each_language_that_describes_some(
    material: AblationData, tmp_path: Path
) -> None:
    captions, gallery = material.test("emoji")
    german = [row for row in captions.to_pylist() if row["language"] == "de"][:4]
    all_english = [row for row in captions.to_pylist() if row["language"] == "en"]
    for name in ("emoji", "stamps"):
        np.savez(tmp_path / f"{name}.npz", ids=np.array(gallery.ids), features=gallery.features)
    pq.write_table(captions, tmp_path / "emoji.parquet")
    pq.write_table(pa.Table.from_pylist(all_english + german), tmp_path / "stamps.parquet")
    both = replace(material, tests=str(tmp_path), sets=("emoji", "stamps"))
    found = english(both)["places"]
    beside = found[BESIDE.format("de")]["en"]
    assert [line.count(NOTHING) for line in beside] == [2, 2], "six images, four in German"
    assert BESIDE.format("hi") not in found, "of which there are none"


@pytest.mark.slow
def test_a_tuned_tower_is_tuned(records: Records, material: AblationData, tmp_path: Path) -> None:
    from mla_ray.reproduce.runs import RunInputs
    from mla_ray.reproduce.tower import tune

    native = Native.load(material.native)
    before = {name: w.clone() for name, w in native.model.named_parameters()}
    run = ab.Run(VARIANTS[4], ("de",), 0)
    prepared = RunInputs.of(run, ["de"], native, material, tmp_path)
    encode = tune(prepared.job(native, tmp_path / "run", material.store), native)
    changed = {n for n, w in native.model.named_parameters() if not torch.equal(w, before[n])}
    assert any("resblocks" in name for name in changed)
    assert not any(name.startswith("visual.") or "token_embedding" in name for name in changed)
    assert encode(["ein Hund"]).shape == (1, native.dim)


@pytest.mark.slow
def test_runs_of_other_data_are_not_taken(
    records: Records, material: AblationData, tmp_path: Path
) -> None:
    run = ab.runs([TABLE], LANGUAGES, [0])[0]
    assert records.get(run) is not None
    other = replace(material, corpora={"de": material.corpora["de"]})
    assert Records.open(records.path.parent, other).get(run) is None
    changed = ab.Run(ab.Variant("both", FEW | {"hidden": 3}), run.languages, 0)
    assert records.get(changed) is None


@pytest.mark.slow
def test_the_page_says_what_was_run(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(records.of(ab.runs([TABLE], LANGUAGES, [0])), LANGUAGES, [0])
    monkeypatch.setattr(ab, "TABLES", {"some": TABLE})
    made = page.write(results, [TABLE], tmp_path, "mla reproduce some")
    text = (tmp_path / "results.md").read_text()
    assert "`mla reproduce some` generates this page" in text
    assert "| a half | 2 |" in text
    assert made["tables"]["some"][0]["variant"] == "both"
    assert "English" in made["tables"]["some"][4], "what became of it is told of a tuned tower"
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text()) == made


@pytest.mark.slow
def test_somebody_elses_records_are_gone_on_from(
    records: Records, material: AblationData, tmp_path: Path
) -> None:
    runs = ab.runs([TABLE], LANGUAGES, [0])
    begin_with(records.path, tmp_path / "mine")
    assert Records.open(tmp_path / "mine", material).of(runs) == records.of(runs)
    with pytest.raises(FileExistsError, match="leave --from out"):
        begin_with(records.path, tmp_path / "mine")


def test_records_of_the_rule_of_before_count_and_that_is_told_once(
    material: AblationData, tmp_path: Path, recognitions: list[str]
) -> None:
    native, runs = Native.load(material.native), ab.runs([TABLE], LANGUAGES, [0])
    made = Records.open(tmp_path, material)
    for run in (None, *runs):
        made.add(run, {"places": {}})
    lines = [json.loads(line) for line in made.path.read_text().splitlines()]
    for line, run in zip(lines, (None, *runs), strict=True):
        assert line["of"] == made.made_of(run, native.fingerprint)
        line["of"] = made.made_of(run, native.fingerprint_v1)
    made.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Records.open(tmp_path, material).of(runs)
    assert len(found) == 1 + len(runs)
    (said,) = recognitions
    assert said.startswith(f"{made.path}: has the fingerprint of mla-ray 0.1.0")
    made.path.write_text(json.dumps(lines[0] | {"of": "0" * 16}) + "\n")
    assert Records.open(tmp_path, material).get(None) is None


def test_features_of_a_test_set_are_of_the_native_and_of_how_images_are_decoded(
    native: Native,
    other_native: Native,
    pngs: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = {"image_id": "one", "image": pngs[0], "language": "en", "caption": "a dog"}
    path, table = tmp_path / "emoji", pa.Table.from_pylist([row])
    kept, about = ablation_data._kept, ablation_data._about
    assert not kept(path, about(native, ["en"]))
    ablation_data._keep(native, [table], path, about(native, ["en"]), lambda step: None)
    assert kept(path, about(native, ["en"]))
    assert not kept(path, about(native, ["en", "de"]))
    assert not kept(path, about(other_native, ["en"]))
    monkeypatch.setattr(ablation_data, "DECODING", DECODING + 1)
    assert not kept(path, about(native, ["en"]))


# --- without Ray ---------------------------------------------------------------------------------


def test_an_image_adds_the_mean_of_its_six_hits() -> None:
    t2i, i2t = np.array([0, 3, 12, 7]), np.array([1, 0, 30, 10])
    lines = ["03x7", "10xx"]
    shares = per_image(lines)
    expected = Ranks(t2i, i2t, np.arange(4)).recall().ar
    assert 100 * shares.mean() == pytest.approx(expected, abs=0.01)
    assert np.isnan(per_image(["0.", "0."])[1])


def test_intervals_hold_the_mean_and_differences_are_of_the_same_images() -> None:
    generator = np.random.default_rng(0)
    first = [generator.random((3, 200)) for _ in range(4)]
    better = [shares + 0.05 for shares in first]
    found = figure(first)
    assert found.low < found.mean < found.high
    difference = figure(better, first)
    assert difference.mean == pytest.approx(5.0)
    assert (difference.low, difference.high) == pytest.approx((5.0, 5.0))


def test_english_in_other_words_is_told_beside_the_languages_on_the_same_images() -> None:
    rows = [
        {"image_id": "twemoji/1f6d2", "language": "en", "caption": "shopping cart"},
        {"image_id": "twemoji/1f600", "language": "en", "caption": "Grinning face"},
        {"image_id": "twemoji/1f469-200d-1f52c", "language": "en", "caption": "woman scientist"},
        {"image_id": "twemoji/1f6d2", "language": "de", "caption": "Einkaufswagen"},
    ]
    others, changed = reworded(pa.Table.from_pylist(rows))
    assert others["caption"].to_pylist() == ["shopping trolley", "Grinning face", "woman scientist"]
    assert changed == {"twemoji/1f6d2"}, "case is no other wording, a sequence has no name"

    records = {
        "English": {
            "places": {"emoji": {"en": ["0007" * 30] * 2}, REWORDED: {"en": ["x0.." * 30] * 2}}
        },
        ab.Run(ab.DEFAULTS, ("de",), 0).key: {"places": {"emoji": {"de": ["0xxx" * 30] * 2}}},
    }
    found = Results(records, ["de"], [0]).reworded(ab.DEFAULTS)
    assert found is not None
    assert (found.images, found.english.mean, found.others.mean) == (60, 100.0, 50.0)
    assert found.languages.mean == 50.0
    assert Results({"English": records["English"]}, ["de"], [0]).reworded(ab.DEFAULTS) is None


def test_a_language_without_a_caption_of_an_image_is_not_charged_for_it() -> None:
    shares = np.tile([1.0, np.nan, 0.0], 20)[None]
    assert figure([shares]).mean == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 1.0, "held"), (-1.0, -0.1, "did not hold"), (-0.1, 0.1, "cannot be told")],
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    assert verdict(Figure((low + high) / 2, low, high)) == expected
    assert verdict_of_loss(Figure(-(low + high) / 2, -high, -low)) == expected


def test_no_claim_is_made_of_what_was_not_run() -> None:
    assert claims(Results({}, LANGUAGES, [0, 1])) == []


def test_every_variant_is_a_valid_configuration() -> None:
    for run in ab.runs(list(ab.TABLES.values()), ab.LANGUAGES, ab.SEEDS):
        config = run.variant.config(run.seed, len(run.languages))
        assert config.seed == run.seed
        if not run.variant.in_turn and run.variant is not ab.DEFAULTS:
            steps = config.nlt.steps + config.le.steps
            assert steps == ab.TOTAL * len(run.languages), "as many for each language"


def test_what_was_begun_keeps_its_tables_and_tests_are_of_the_tables(
    native_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary that comes back would make all records those of other data."""

    def unavailable(folder: Path) -> Path:
        raise Unavailable("no network")

    def gathered(name: str) -> AblationData:
        folder = tmp_path / name
        report: Report = lambda step: None  # noqa: E731
        return prepare_data(str(native_folder), ["de"], data, folder, report, with_bert=False)

    monkeypatch.setattr(stamps, "fetch", unavailable)
    only_a_few(monkeypatch)
    dictionaries, data = Dictionaries(monkeypatch), tmp_path / "data"
    first = gathered("begun")
    digest = first.digest()
    kept = Path(first.tests) / "emoji.npz"
    written = kept.stat().st_mtime_ns
    dictionaries.away = False
    assert gathered("begun").digest() == digest
    assert gathered("new").digest() != digest
    assert kept.stat().st_mtime_ns == written
    # A test made of other captions is not one of these.
    table = pq.read_table(kept.with_suffix(".parquet"))
    old = table.slice(2).replace_schema_metadata({"languages": "en,de"})
    pq.write_table(old, kept.with_suffix(".parquet"))
    assert gathered("begun").digest() == digest
    assert pq.read_table(kept.with_suffix(".parquet")).equals(table)


def test_a_share_is_drawn_by_seed_and_leaves_english_out(
    material: AblationData, tmp_path: Path
) -> None:
    corpus = material.corpora["de"]
    parts = [part_of(corpus, 0.5, seed, tmp_path / str(n)) for n, seed in enumerate((0, 0, 1))]
    tables = [pq.read_table(part.pairs[0]) for part in parts]
    assert [table.num_rows for table in tables] == [3, 3, 3]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    captions = pq.read_table(parts[0].captions)
    assert captions["language"].unique().to_pylist() == ["de"]
    assert captions.num_rows == 3


def test_a_small_bert_learns_and_is_read_as_a_vocabulary(
    corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    texts = [*corpus["de"], *corpus["hi"]] * 3
    bert.pretrain(texts, tmp_path / "bert", vocab_size=200, steps=3, batch=4)
    tokenizer, rows = from_hugging_face(str(tmp_path / "bert"))
    assert rows.shape == (tokenizer.get_vocab_size(), bert.WIDTH)
    ids = tokenizer.encode("zwei Hunde").ids
    assert tokenizer.id_to_token(ids[0]) == "[CLS]"
    assert tokenizer.id_to_token(ids[-1]) == "[SEP]"
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode("कुत्ता").ids


def test_masking_asks_for_no_frame_and_always_for_something() -> None:
    ids = torch.full((4, 6), 7)
    ids[:, 0], ids[:, -1], ids[0, 3:] = 2, 3, 0
    masked, wanted = bert.mask(ids, 4, 100, torch.Generator().manual_seed(0))
    asked = wanted != bert.NOT_ASKED
    assert asked.any()
    assert (ids[asked] >= len(bert.SPECIAL)).all()
    assert torch.equal(masked[~asked], ids[~asked])
