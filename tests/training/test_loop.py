"""Promises of mla_ray.training.loop: training in this process, or in a few, without Ray."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from upath import UPath

from mla_ray.data.blocks import Examples
from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore, Kind, encode_images, encode_texts
from mla_ray.data.keys import key_of
from mla_ray.data.parquet import read_parquet
from mla_ray.evaluation.recall import rank
from mla_ray.model.native import Native
from mla_ray.model.objectives import positive_groups
from mla_ray.packs.card import read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path, write_json
from mla_ray.training.acquisition import begin, job_of
from mla_ray.training.acquisition_learner import AcquisitionLearner, PreparedRun, train
from mla_ray.training.checkpoints import TENSORS
from mla_ray.training.config import AcquireConfig, HeldOut, Stage
from mla_ray.training.driver import Control, Driver
from mla_ray.training.loop import DONE, LOG_EVERY, Diverged
from mla_ray.training.prepare import contents, prepare, read_prepared
from mla_ray.training.run_spec import spec_of
from tests.support import gloo

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 2 * LOG_EVERY
CONFIG = AcquireConfig(
    nlt=Stage(steps=STEPS, batch=8, lr=2e-3),
    le=Stage(steps=STEPS, batch=8, lr=1e-3),
    vocab_size=400,
    checkpoint_every=7,
)
HELD = CONFIG.model_copy(update={"held_out": HeldOut(every=4, size=10)})
THINGS = {
    "en": ("dog", "cat", "boat", "sun", "umbrella", "grapes"),
    "de": ("Hund", "Katze", "Boot", "Sonne", "Schirm", "Trauben"),
    "hi": ("कुत्ता", "बिल्ली", "नाव", "सूरज", "छाता", "अंगूर"),
}
COLOURS = {
    "en": ("a red", "two small", "the old", "my", "one"),
    "de": ("roter", "zwei kleine", "das alte", "mein", "ein"),
    "hi": ("लाल", "दो छोटे", "पुराना", "मेरा", "एक"),
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def said(language: str) -> list[str]:
    return [f"{colour} {thing}" for thing in THINGS[language] for colour in COLOURS[language]]


@pytest.fixture(scope="module")
def tables(pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """Thirty translations; six things drawn twice, with four captions each, some of them alike."""
    folder, made = tmp_path_factory.mktemp("tables"), {}
    for number, png in enumerate(pngs):
        (folder / f"{number}.png").write_bytes(png)
    for language in ("de", "hi"):
        lines = [f"{en}\t{text}" for en, text in zip(said("en"), said(language), strict=True)]
        pairs = folder / f"pairs-{language}.tsv"
        pairs.write_text("\n".join(["source\ttarget", *lines]) + "\n")
        rows = [
            {
                "image_id": f"image {number}",
                "image": f"{number}.png",
                "language": language,
                "caption": caption,
                "split": "validation" if number % 6 > 3 else "train",
            }
            for number in range(12)
            for caption in [THINGS[language][number % 6], *said(language)[5 * (number % 6) :][:3]]
        ]
        captions = folder / f"captions-{language}.jsonl"
        captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[language] = Corpus(language, [pairs], captions)
    return made


Make = Callable[..., PreparedRun]


def learner_of(job: PreparedRun) -> AcquisitionLearner:
    return AcquisitionLearner(job, Native.load(job.spec["native"]))


@pytest.fixture(scope="module")
def make(native_folder: Path, tables: dict[str, Corpus]) -> Make:
    """A prepared run with all its features."""
    native = Native.load(str(native_folder))

    def job(
        run: Path | str,
        config: AcquireConfig = CONFIG,
        languages: Sequence[str] = ("de",),
        broken: int = 0,
    ) -> PreparedRun:
        corpora = [tables[language] for language in languages]
        prepared = prepare(native, corpora, config, as_path(run))
        store = as_path(run) / "features"
        blocks: dict[Kind, list[UPath]] = {}
        for each in contents(as_path(run), corpora):
            of_kind = [each.folder / f"b{prefix}.parquet" for prefix, _ in each.blocks]
            blocks.setdefault(each.kind, []).extend(of_kind)
        for kind, of_kind in blocks.items():
            fill(store, native, kind, of_kind, broken)
        return job_of(as_path(run), store, prepared)

    return job


def fill(root: UPath, native: Native, kind: Kind, blocks: Sequence[UPath], broken: int) -> None:
    """All features of these contents but the last `broken` images'."""
    rows = [row for block in blocks for row in read_parquet(block).to_pylist()]
    if not rows:
        return
    if kind == "text":
        features = encode_texts(native, [row["content"].decode() for row in rows])
        broken = 0
    else:
        features = encode_images(native, [Path(row["uri"]).read_bytes() for row in rows])
    reasons = [None] * (len(rows) - broken) + ["is broken"] * broken
    store = FeatureStore(root, native.fingerprint, kind)
    store.write([row["key"] for row in rows], features, reasons, "")


def told(run: Path | UPath) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(rows: Sequence[dict[str, Any]], figure: str) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in rows if figure in row]


def left(run: Path | UPath) -> dict[str, bytes]:
    """What a training is for: its packs, and which are the result."""
    found = {"done": (run / "done.json").read_bytes()}
    for stage in ("fresh", "nlt", "le"):
        for language in ("de", "hi"):
            folder = run / "packs" / stage / language
            if (folder / "card.json").exists():
                for name in ("weights.safetensors", "tokenizer.json", "card.json"):
                    found[f"{stage}/{language}/{name}"] = (folder / name).read_bytes()
    return found


def weights(pack: Path) -> dict[str, Tensor]:
    return load_file(pack / "weights.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def controlled(*controls: Control) -> Driver:
    """Answers one after another, and then to go on."""
    left_to_say = iter(controls)
    return Driver(control=lambda: next(left_to_say, Control.CONTINUE))


Script = Callable[[dict[int, float]], dict[int, dict[str, Tensor]]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Held-out AR by step of the whole training, 0 where not said; keeps the weights it is of."""

    def script(figures: dict[int, float]) -> dict[int, dict[str, Tensor]]:
        seen: dict[int, dict[str, Tensor]] = {}

        def evaluate(learner: AcquisitionLearner) -> float:
            step = learner.steps_before + learner.step
            encoder = learner.encoders["de"]
            seen[step] = {n: w.detach().clone() for n, w in encoder.named_parameters()}
            return figures.get(step, 0.0)

        monkeypatch.setattr(AcquisitionLearner, "held_out_ar", evaluate)
        return seen

    return script


def is_of(pack: Path, trained: dict[str, Tensor], rows: Tensor) -> bool:
    """Whether a pack holds these weights, the rows in half precision."""
    expected = {**trained, "embedding.rows.weight": trained["embedding.rows.weight"][rows].half()}
    found = weights(pack)
    return all(torch.equal(found[name], weight) for name, weight in expected.items())


def own_rows(run: Path, language: str = "de") -> Tensor:
    return load_file(run / "data" / "init.safetensors")[f"own/{language}"]


# --- a whole training ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Uninterrupted runs, without and with held-out figures."""
    runs = {}
    for held, config in ((False, CONFIG), (True, HELD)):
        runs[held] = tmp_path_factory.mktemp("whole") / "run"
        assert train(make(runs[held], config))
    return runs


def test_a_training_says_which_packs_are_its_result(whole: dict[bool, Path]) -> None:
    for run in whole.values():
        done = json.loads((run / "done.json").read_text())
        assert done["packs"] == {"de": "packs/le/de"}
        assert (done["stage"], done["total_step"]) == (2, 2 * STEPS)
        stages = [weights(run / "packs" / stage / "de") for stage in ("fresh", "nlt", "le")]
        assert not same(stages[0], stages[1])
    stages = [weights(whole[False] / "packs" / stage / "de") for stage in ("nlt", "le")]
    assert not same(*stages)


def test_the_result_is_of_the_last_stage_that_has_steps(make: Make, tmp_path: Path) -> None:
    none = Stage(steps=0, batch=8, lr=1e-3)
    few = Stage(steps=2, batch=8, lr=1e-3)
    for result, nlt, le in (("nlt", few, none), ("le", none, few), ("fresh", none, none)):
        config = CONFIG.model_copy(update={"nlt": nlt, "le": le})
        assert train(make(tmp_path / result, config, ("de", "hi")))
        packs = json.loads((tmp_path / result / "done.json").read_text())["packs"]
        assert packs == {language: f"packs/{result}/{language}" for language in ("de", "hi")}
        for pack in packs.values():
            assert read_card(tmp_path / result / pack).stages.keys() == {result} - {"fresh"} | (
                {"nlt"} if result == "le" else set()
            )


def test_a_finished_training_is_finished_when_asked_again(
    whole: dict[bool, Path], make: Make
) -> None:
    for held, run in whole.items():
        before, rows = left(run), told(run)
        assert train(make(run, HELD if held else CONFIG), Driver(on_checkpoint=never))
        assert left(run) == before
        assert told(run) == rows


def never(figures: dict[str, Any], folder: UPath | None) -> None:
    raise AssertionError("there is nothing to save")


def test_metrics_come_every_few_steps_and_at_the_end_of_a_stage(make: Make, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={
            "nlt": Stage(steps=13, batch=8, lr=1e-3),
            "le": Stage(steps=10, batch=8, lr=1e-3),
            "held_out": HeldOut(every=5, size=6),
        }
    )
    sent: list[dict[str, Any]] = []
    assert train(make(tmp_path / "run", config), Driver(on_metrics=sent.append))
    rows = told(tmp_path / "run")
    losses = [("nlt", 10), ("nlt", 13), ("le", 10)]
    assert steps_of(rows, "loss") == steps_of(sent, "loss") == losses
    held = [*(("nlt", step) for step in (5, 10, 13)), *(("le", step) for step in (5, 10))]
    assert steps_of(rows, "AR") == steps_of(sent, "AR") == held
    for row in rows:
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    best = 0.0
    for row in rows:
        if "AR" in row:
            best = max(best, row["AR"])
            assert 0 <= row["AR"] <= 100
            assert row["best_AR"] == best


def test_checkpoints_come_when_due_and_at_the_end_of_each_stage(make: Make, tmp_path: Path) -> None:
    saved: list[tuple[int, int, int, str]] = []

    def note(figures: dict[str, Any], folder: UPath | None) -> None:
        assert folder is not None
        assert (folder / "checkpoint.json").exists()
        saved.append((figures["stage"], figures["step"], figures["total_step"], folder.name))

    assert train(make(tmp_path / "run"), Driver(on_checkpoint=note))
    assert [place[:3] for place in saved] == [
        *((0, 7, 7), (0, 14, 14), (1, 0, 20)),
        *((1, 7, 27), (1, 14, 34), (2, 0, 40)),
    ]
    assert [name for *_, name in saved] == sorted({name for *_, name in saved})
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {
        name for *_, name in saved[-2:]
    }


def test_another_native_is_refused(make: Make, tmp_path: Path) -> None:
    job = make(tmp_path / "run")
    other = PreparedRun(job.run, job.tables, job.store, job.spec | {"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="is not the one the run began with"):
        train(other)


def test_a_run_of_the_rule_of_before_goes_on_and_that_is_told(
    make: Make,
    whole: dict[bool, Path],
    tables: dict[str, Corpus],
    native_folder: Path,
    tmp_path: Path,
    recognitions: list[str],
) -> None:
    """Its run.json and its features are as mla-ray 0.1.0 wrote them; its packs are as today."""
    native, run = Native.load(str(native_folder)), tmp_path / "run"
    job = make(run)
    assert not train(job, controlled(Control.STOP))
    spec = json.loads((run / "run.json").read_text())
    assert spec["fingerprint"] == native.fingerprint
    (run / "run.json").write_text(json.dumps(spec | {"fingerprint": native.fingerprint_v1}))
    features = run / "features"
    (features / native.fingerprint[:16]).rename(features / native.fingerprint_v1[:16])
    for resume in (True, True):
        begin(native, [tables["de"]], CONFIG, as_path(run), resume)
    assert train(job_of(as_path(run), as_path(features), read_prepared(run)))
    assert sorted(said.partition(": has the fingerprint")[0] for said in recognitions) == [
        str(run),
        str(features / native.fingerprint_v1[:16]),
    ]
    assert left(run) == left(whole[False])
    assert read_card(run / "packs" / "le" / "de").fingerprint == native.fingerprint
    other = spec | {"fingerprint": "0" * 64}
    (run / "run.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="fingerprint differ"):
        begin(native, [tables["de"]], CONFIG, as_path(run), resume=True)


def test_prepared_tables_of_the_rule_of_before_are_shared(
    make: Make, tables: dict[str, Corpus], native_folder: Path, tmp_path: Path
) -> None:
    native, folder = Native.load(str(native_folder)), tmp_path / "tables"
    make(folder)
    spec = json.loads((folder / "run.json").read_text()) | {"fingerprint": native.fingerprint_v1}
    (folder / "run.json").write_text(json.dumps(spec))
    begin(native, [tables["de"]], CONFIG, as_path(tmp_path / "run"), False, as_path(folder))


def test_a_loss_that_is_no_number_ends_the_training_with_its_remedy(
    make: Make, tmp_path: Path
) -> None:
    stage = Stage(steps=STEPS, batch=8, lr=1e30)
    job = make(tmp_path / "run", CONFIG.model_copy(update={"nlt": stage}))
    for _ in range(2):  # going on from its checkpoint, too
        with pytest.raises(
            Diverged, match=rf"nlt step {LOG_EVERY}: .* make nlt.lr \(1e\+30\) smaller"
        ):
            train(job)
    assert not (tmp_path / "run" / DONE).exists()
    (row,) = told(tmp_path / "run")  # of the last try
    assert (row["stage"], row["step"], row["loss"]) == ("nlt", LOG_EVERY, None)


@pytest.mark.parametrize("stage", ["nlt", "le"])
def test_under_autocast_the_features_alone_are_in_bfloat16(
    make: Make, tmp_path: Path, stage: str
) -> None:
    """Gradients are those of a loss that is worked out where nothing is cast."""
    learner = learner_of(make(tmp_path / "run"))
    encode, weights = learner.encode, list(learner.weights().values())
    for acquirer in learner.encoders["de"].acquirers:
        torch.nn.init.normal_(acquirer.up.weight, std=0.1)

    def gradients(whole: bool) -> list[Tensor]:
        """With autocast around the whole objective, as the loop has it, or the encoder alone."""

        def encode_in_bfloat16(language: str, texts: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                features = encode(language, texts)
            assert features.dtype == torch.bfloat16
            return features

        learner.encode = encode_in_bfloat16  # type: ignore[method-assign]
        with torch.autocast("cpu", torch.bfloat16, enabled=whole):
            loss = learner.loss(learner.batches(stage)[0])
        assert loss.dtype == torch.float32
        return [g.to_dense() for g in torch.autograd.grad(loss, weights)]

    for found, wanted in zip(gradients(whole=True), gradients(whole=False), strict=True):
        assert torch.equal(found, wanted)


def test_runs_that_differ_in_training_alone_share_their_tables(
    make: Make, tables: dict[str, Corpus], native_folder: Path, tmp_path: Path
) -> None:
    job = make(tmp_path / "tables")
    native, run = Native.load(str(native_folder)), as_path(tmp_path / "run")
    shared, corpora = as_path(tmp_path / "tables"), [tables["de"]]
    other = CONFIG.model_copy(update={"hidden": 7, "warmup": 0.0, "checkpoint_every": 9})
    begin(native, corpora, other, run, False, shared)
    write_json(run / "run.json", spec_of(native, corpora, other))
    begin(native, corpora, other, run, True, shared)
    assert train(job_of(run, as_path(job.store), read_prepared(shared), shared))
    card = read_card(run / "packs" / "le" / "de")
    assert card.hidden == 7
    assert not (run / "data").exists()
    for changed in ({"vocab_size": 401}, {"rows": "random"}, {"seed": 1}, {"sample": 9}):
        with pytest.raises(ValueError, match="prepared from other data or settings"):
            begin(native, corpora, CONFIG.model_copy(update=changed), run, True, shared)
    with pytest.raises(ValueError, match="prepared from other data or settings"):
        begin(native, corpora, HELD, run, True, shared)
    with pytest.raises(ValueError, match="config differ from the run begun there"):
        begin(native, corpora, CONFIG, run, True, shared)


def test_a_run_at_a_url_is_the_local_one_to_the_byte(
    make: Make, whole: dict[bool, Path], tmp_path: Path
) -> None:
    run = as_path(f"memory://loop-{tmp_path.name}/run")
    job = make(str(run), HELD)
    assert not train(job, controlled(Control.CONTINUE, Control.STOP))
    assert train(job)
    assert left(run) == left(whole[True])


# --- held-out figures ---------------------------------------------------------------------------


def test_the_figure_of_a_pack_is_what_anyone_measures_with_it(
    make: Make, native_folder: Path, tmp_path: Path
) -> None:
    native = Native.load(str(native_folder))
    run = tmp_path / "run"
    assert train(make(run, HELD, ("de", "hi")))
    english = {text: n for n, text in enumerate(said("en"))}
    found = []
    for language in ("de", "hi"):
        pack = LanguagePack.load(run / "packs" / "le" / language, native)
        rows = read_parquet(as_path(run) / "data" / language / "held-out" / "rows.parquet")
        number = {key_of(text): english[text] for text in english}
        numbers = [number[key] for key in rows["key"].to_pylist()]
        assert len(set(numbers)) == len(numbers) == 10
        text = pack.encode_text([said(language)[n] for n in numbers]).numpy()
        frozen = encode_texts(native, [said("en")[n] for n in numbers])
        found.append(rank(text, frozen, np.arange(10)).recall().ar)
    rows = [row for row in told(run) if "AR" in row]
    best = max(row["AR"] for row in rows)
    assert np.mean(found) == pytest.approx(best)
    card = read_card(run / "packs" / "le" / "de")
    assert card.metrics["held_out_AR"] == pytest.approx(best, abs=0.005)
    steps = [row["step"] + (STEPS if row["stage"] == "le" else 0) for row in rows]
    assert card.metrics["step"] == steps[[row["AR"] for row in rows].index(best)]


def test_a_stage_ends_with_the_best_weights_and_the_next_goes_on_from_them(
    make: Make, scripted: Script, tmp_path: Path
) -> None:
    seen = scripted({4: 10, 8: 30, 12: 20, 20: 29, 24: 3, 32: 40, 36: 39})
    run = tmp_path / "run"
    assert train(make(run, HELD))
    rows = own_rows(run)
    assert is_of(run / "packs" / "nlt" / "de", seen[8], rows)
    assert is_of(run / "packs" / "le" / "de", seen[32], rows)
    for stage, figures in (("nlt", (30, 8)), ("le", (40, 32))):
        metrics = read_card(run / "packs" / stage / "de").metrics
        assert (metrics["held_out_AR"], metrics["step"]) == figures
    done = json.loads((run / "done.json").read_text())
    assert done["best_AR"] == 40


def test_a_stage_that_brings_no_gain_changes_nothing(
    make: Make, scripted: Script, tmp_path: Path
) -> None:
    seen = scripted({4: 10, 8: 30, 12: 30, 24: 29})
    run = tmp_path / "run"
    assert train(make(run, HELD))
    assert is_of(run / "packs" / "nlt" / "de", seen[8], own_rows(run)), "the first of equals"
    assert same(weights(run / "packs" / "nlt" / "de"), weights(run / "packs" / "le" / "de"))


def test_the_last_weights_are_kept_if_they_are_the_best(
    make: Make, scripted: Script, tmp_path: Path
) -> None:
    seen = scripted({step: float(step) for step in range(4, 2 * STEPS + 1)})
    run = tmp_path / "run"
    assert train(make(run, HELD))
    assert is_of(run / "packs" / "nlt" / "de", seen[STEPS], own_rows(run))
    assert is_of(run / "packs" / "le" / "de", seen[2 * STEPS], own_rows(run))


PATIENT = CONFIG.model_copy(update={"held_out": HeldOut(every=4, size=10, patience=2)})


def test_patience_ends_a_stage_early(make: Make, scripted: Script, tmp_path: Path) -> None:
    seen = scripted({4: 10, 8: 30, 12: 20, 16: 30, 24: 1, 28: 31, 32: 2, 36: 2, 40: 99})
    run = tmp_path / "run"
    assert train(make(run, PATIENT))
    assert steps_of(told(run), "AR") == [
        *(("nlt", step) for step in (4, 8, 12, 16)),
        *(("le", step) for step in (4, 8, 12, 16)),
    ]
    assert is_of(run / "packs" / "nlt" / "de", seen[8], own_rows(run))
    assert is_of(run / "packs" / "le" / "de", seen[28], own_rows(run))
    assert read_card(run / "packs" / "le" / "de").metrics["step"] == 28


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_patience_and_the_best_outlive_an_interruption(
    make: Make, scripted: Script, tmp_path: Path, answered: int
) -> None:
    figures = {4: 10.0, 8: 30.0, 12: 20.0, 16: 30.0, 24: 1.0, 28: 31.0, 32: 2.0, 36: 2.0, 40: 99.0}
    scripted(figures)
    assert train(make(tmp_path / "whole", PATIENT))
    job = make(tmp_path / "run", PATIENT)
    assert train(job, controlled(*[Control.CONTINUE] * answered, Control.STOP)) == (answered == 2)
    assert train(job)
    assert left(tmp_path / "run") == left(tmp_path / "whole")
    for figure in ("AR", "loss"):
        rows = [told(tmp_path / run) for run in ("run", "whole")]
        assert steps_of(rows[0], figure) == steps_of(rows[1], figure)


def test_held_out_captions_are_measured_against_their_images(
    make: Make, native_folder: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"held_out": HeldOut(every=10, size=99, of="captions")})
    run = tmp_path / "run"
    job = make(run, config)
    assert train(job)
    native = Native.load(str(native_folder))
    pack = LanguagePack.load(run / "packs" / "le" / "de", native)
    rows = read_parquet(as_path(run) / "data" / "de" / "held-out" / "rows.parquet")
    keys, of = np.unique(np.array(rows["key"].to_pylist()), return_inverse=True)
    assert (len(rows), len(keys)) == (16, 4)
    frozen = FeatureStore(as_path(job.store), native.fingerprint, "image").read(keys.tolist())
    decoded = pack.tokenizer.tokenizer.decode_batch(
        [pack.tokenizer.tokens[own_places(run, ids)].tolist() for ids in rows["ids"].to_pylist()]
    )
    text = pack.encode_text([line.strip() for line in decoded]).numpy()
    best = max(row["AR"] for row in told(run) if "AR" in row)
    assert rank(text, frozen, of).recall().ar == pytest.approx(best)


def own_places(run: Path, rows: list[int]) -> list[int]:
    own = own_rows(run).tolist()
    return [own.index(row) for row in rows]


def test_a_held_out_image_that_is_broken_does_not_count(
    make: Make, native_folder: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(
        update={
            "nlt": Stage(steps=4, batch=8, lr=1e-3),
            "le": Stage(steps=0, batch=8, lr=1e-3),
            "held_out": HeldOut(every=4, size=99, of="captions"),
        }
    )
    broken = make(tmp_path / "broken", config, broken=1)  # the last is a held-out one
    assert train(broken)
    rows = (
        as_path(make(tmp_path / "left-out", config).run)
        / "data"
        / "de"
        / "held-out"
        / "rows.parquet"
    )
    table = read_parquet(rows)
    store = FeatureStore(as_path(broken.store), broken.spec["fingerprint"], "image")
    keys = table["key"].to_pylist()
    sound = ~np.isnan(store.read(keys)[:, 0])
    assert 0 < sound.sum() < len(sound)
    pq.write_table(table.filter(pa.array(sound)), str(rows))
    assert train(make(tmp_path / "left-out", config))
    found = [
        [row["AR"] for row in told(tmp_path / run) if "AR" in row] for run in ("broken", "left-out")
    ]
    assert found[0] == found[1]


# --- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held", [pytest.param(False, marks=pytest.mark.slow, id=""), pytest.param(True, id="held-out")]
)
@pytest.mark.parametrize(
    "place", range(4), ids=["in nlt", "at the end of nlt", "in le", "at the end of le"]
)
def test_stopped_and_called_again_it_leaves_the_same_bytes(
    make: Make, whole: dict[bool, Path], tmp_path: Path, place: int, held: bool
) -> None:
    run = tmp_path / "run"
    job = make(run, HELD if held else CONFIG)
    saved: list[int] = []
    answers = iter([Control.CONTINUE] * place + [Control.STOP])
    outside = Driver(
        on_checkpoint=lambda figures, folder: saved.append(figures["total_step"]),
        control=lambda: next(answers),
    )
    assert not train(job, outside)
    assert saved[-1] == LOG_EVERY * (place + 1)
    assert not (run / "done.json").exists()
    assert train(job)
    assert left(run) == left(whole[held])
    for figure in ("loss", "AR"):
        assert steps_of(told(run), figure) == steps_of(told(whole[held]), figure)
    kept = ("loss", "AR", "best_AR", "lr", "gradient_norm")
    for ours, theirs in zip(told(run), told(whole[held]), strict=True):
        assert {k: ours.get(k) for k in kept} == {k: theirs.get(k) for k in kept}


def test_stopped_again_and_again_it_leaves_the_same_bytes(
    make: Make, whole: dict[bool, Path], tmp_path: Path
) -> None:
    job = make(tmp_path / "run", HELD)
    for _ in range(4):
        assert not train(job, controlled(Control.STOP))
    assert train(job, controlled(Control.STOP)), "nobody is asked any more"
    assert left(tmp_path / "run") == left(whole[True])


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "saves",
    [pytest.param(n, marks=pytest.mark.slow) if n in (1, 2, 4, 5) else n for n in range(7)],
)
def test_killed_at_any_checkpoint_it_leaves_the_same_bytes(
    make: Make, whole: dict[bool, Path], tmp_path: Path, saves: int
) -> None:
    job, count = make(tmp_path / "run", HELD), 0

    def saved(figures: dict[str, Any], folder: UPath | None) -> None:
        nonlocal count
        count += 1
        if count == saves:
            raise Killed

    def wish() -> Control:
        if saves == 0:  # before the first checkpoint but one
            raise Killed
        return Control.CONTINUE

    with pytest.raises(Killed):
        train(job, Driver(on_checkpoint=saved, control=wish))
    assert train(job)
    assert left(tmp_path / "run") == left(whole[True])
    assert steps_of(told(tmp_path / "run"), "AR") == steps_of(told(whole[True]), "AR")


@pytest.mark.parametrize("held", [False, True], ids=["", "held-out"])
def test_a_checkpoint_that_was_wished_for_is_written_and_changes_nothing(
    make: Make, whole: dict[bool, Path], tmp_path: Path, held: bool
) -> None:
    run = tmp_path / "run"
    saved: list[int] = []
    answers = iter([Control.SAVE, Control.CONTINUE, Control.SAVE])

    def note(figures: dict[str, Any], folder: UPath | None) -> None:
        assert folder is not None
        assert (folder / "checkpoint.json").exists()
        saved.append(figures["total_step"])

    outside = Driver(on_checkpoint=note, control=lambda: next(answers, Control.CONTINUE))
    assert train(make(run, HELD if held else CONFIG), outside)
    assert saved == [7, 10, 14, 20, 27, 30, 34, 40]
    assert left(run) == left(whole[held])


def flip(checkpoint: Path) -> None:
    file = checkpoint / TENSORS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture
def stopped(make: Make, tmp_path: Path) -> tuple[PreparedRun, list[Path]]:
    """A training stopped in LE, and its checkpoints, the oldest first."""
    job = make(tmp_path / "run", HELD)
    assert not train(job, controlled(Control.CONTINUE, Control.CONTINUE, Control.STOP))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    return job, checkpoints


def test_a_damaged_newest_checkpoint_costs_steps_and_no_bytes(
    stopped: tuple[PreparedRun, list[Path]], whole: dict[bool, Path], tmp_path: Path
) -> None:
    job, checkpoints = stopped
    flip(checkpoints[-1])
    assert train(job)
    assert left(tmp_path / "run") == left(whole[True])
    assert steps_of(told(tmp_path / "run"), "AR") == steps_of(told(whole[True]), "AR")


def test_with_all_checkpoints_damaged_nothing_is_begun_anew(
    stopped: tuple[PreparedRun, list[Path]], tmp_path: Path
) -> None:
    job, checkpoints = stopped
    for checkpoint in checkpoints:
        flip(checkpoint)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    with pytest.raises(ValueError, match=r"no checkpoint is valid .* delete this folder"):
        train(job)
    assert {file: file.read_bytes() for file in files} == before


# --- several workers ----------------------------------------------------------------------------

WORLD = 3
TOGETHER = CONFIG.model_copy(
    update={
        "nlt": Stage(steps=6, batch=8, lr=2e-3),
        "le": Stage(steps=4, batch=8, lr=1e-3),
        "temperature": 1.0,  # at the paper's, gradients here are in the hundreds, and so is noise
        "held_out": HeldOut(every=3, size=10),
    }
)


def worker(rank: int, world: int, job: PreparedRun, out: str) -> None:
    """Gradients and one step of each objective, then a whole training."""
    for name in ("nlt", "le"):
        save_file(one_step(job, name), f"{out}/{name}-{rank}")
    assert train(job)


def examples(learner: AcquisitionLearner, name: str, step: int) -> Examples:
    return learner.batches(name)[step].examples


def step_of(learner: AcquisitionLearner, name: str) -> int:
    """The first step of LE whose batch repeats an image and a caption."""
    if name == "nlt":
        return 0
    for step in range(100):
        batch = examples(learner, name, step)
        if max(len(set(column.tolist())) for column in (batch.key, batch.caption)) < 8:
            return step
    raise AssertionError("there is none")


def one_step(job: PreparedRun, name: str) -> dict[str, Tensor]:
    learner = learner_of(job)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in learner.encoders["de"].acquirers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    rows = learner.encoders["de"].embedding.rows.weight
    optimizer, found = learner.optimizer, {}
    learner.loss(learner.batches(name)[step_of(learner, name)]).backward()
    optimizer.all_reduce()
    for number, weight in enumerate(optimizer.dense):
        assert weight.grad is not None
        found[f"gradient/{number}"] = weight.grad.clone()
    before = rows.detach().clone()
    found["norm"] = optimizer.clip_grad_norm_(1e9).clone()
    optimizer.step(1e-3)
    optimizer.zero_grad()
    found["gradient/touched"] = (rows != before).any(1).to(torch.int64)
    for weight_name, weight in learner.weights().items():
        found[f"weights/{weight_name}"] = weight.detach().clone()
    return found


@pytest.fixture(scope="module")
def together(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What one worker and what three made of the same run, by their number."""
    made = {}
    for world in (1, WORLD):
        made[world] = tmp_path_factory.mktemp("together")
        job = make(made[world] / "run", TOGETHER)
        if world == 1:
            worker(0, 1, job, str(made[world]))
        else:
            gloo.together(world, worker, job, str(made[world]))
    return made


def test_the_batch_of_these_tests_is_shared_out_unevenly_and_has_groups(
    together: dict[int, Path], make: Make
) -> None:
    job = make(together[1] / "run", TOGETHER)
    learner = learner_of(job)
    for name in ("nlt", "le"):
        batch = examples(learner, name, step_of(learner, name))
        assert [len(batch[slice(first, None, WORLD)].ids) for first in range(WORLD)] == [3, 3, 2]
    of = positive_groups(batch.key.tolist(), batch.caption.tolist())
    assert 1 < len(set(of)) < 8
    assert len(set(batch.key.tolist())) < 8, "an image has several captions in it"
    assert len(set(batch.caption.tolist())) < 8, "a caption has several images in it"


@pytest.mark.parametrize("name", ["nlt", "le"])
def test_uneven_shares_add_up_to_the_gradient_and_the_step_of_the_whole_batch(
    together: dict[int, Path], name: str
) -> None:
    one, three = (load_file(together[world] / f"{name}-0") for world in (1, WORLD))
    assert one.keys() == three.keys()
    assert torch.equal(one["gradient/touched"], three["gradient/touched"])
    for tensor, expected in one.items():
        assert expected.abs().max() > 0, tensor
        torch.testing.assert_close(three[tensor], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["nlt", "le"])
def test_all_workers_take_the_same_step_to_the_byte(together: dict[int, Path], name: str) -> None:
    first = load_file(together[WORLD] / f"{name}-0")
    for other in range(1, WORLD):
        assert same(load_file(together[WORLD] / f"{name}-{other}"), first)


def test_three_workers_leave_the_packs_and_the_figures_that_one_does(
    together: dict[int, Path],
) -> None:
    runs = [together[world] / "run" for world in (1, WORLD)]
    done = [json.loads((run / "done.json").read_text()) for run in runs]
    assert done[0]["packs"] == done[1]["packs"] == {"de": "packs/le/de"}
    for stage in ("fresh", "nlt", "le"):
        one, three = (weights(run / "packs" / stage / "de") for run in runs)
        for name in one:
            torch.testing.assert_close(three[name], one[name], rtol=1e-3, atol=2e-5)
    for ours, theirs in zip(*map(told, runs), strict=True):
        assert (ours["stage"], ours["step"]) == (theirs["stage"], theirs["step"])
        for figure in ("loss", "gradient_norm", "AR", "best_AR"):
            if figure in ours:
                assert ours[figure] == pytest.approx(theirs[figure], rel=1e-3), figure


# --- from a pack ---------------------------------------------------------------------------------


def from_pack(make: Make, tables: dict[str, Corpus], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`make`, for German captions alone, starting from a pack."""

    def job(run: Path, pack: Path, config: AcquireConfig) -> PreparedRun:
        corpus = Corpus("de", [], tables["de"].captions, pack)
        monkeypatch.setitem(tables, "de", corpus)
        return make(run, config)

    return job


def test_a_run_from_a_pack_begins_with_its_weights_and_keeps_its_rows(
    make: Make, tables: dict[str, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make(tmp_path / "first", CONFIG))
    pack = tmp_path / "first" / "packs" / "le" / "de"
    nlt = CONFIG.nlt.model_copy(update={"steps": 0})
    config = CONFIG.model_copy(update={"nlt": nlt, "hidden": 3, "vocab_size": 300})
    train(from_pack(make, tables, monkeypatch)(tmp_path / "second", pack, config))
    before, fresh, after = (
        load_file(folder / "weights.safetensors")
        for folder in (
            pack,
            tmp_path / "second" / "packs" / "fresh" / "de",
            tmp_path / "second" / "packs" / "le" / "de",
        )
    )
    assert before.keys() == fresh.keys() == after.keys()
    assert all(fresh[name].equal(before[name]) for name in before)
    assert after["embedding.tokens"].equal(before["embedding.tokens"])
    assert all(after[n].shape == before[n].shape for n in before)
    assert not after["acquirers.0.up.weight"].equal(before["acquirers.0.up.weight"])
    card = read_card(tmp_path / "second" / "packs" / "le" / "de")
    assert card.started_from
    assert card.started_from["sha256"] == read_card(pack).sha256
    assert card.started_from["stages"]["nlt"]["steps"] == STEPS
    assert card.rows == read_card(pack).rows


def test_tokens_that_the_pack_has_no_row_for_are_left_out(
    make: Make, tables: dict[str, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions of another script meet the German pack's bytes: most of theirs have no row."""
    train(make(tmp_path / "first", CONFIG.model_copy(update={"le": CONFIG.nlt})))
    pack = tmp_path / "first" / "packs" / "le" / "de"
    hindi = [json.loads(line) for line in Path(str(tables["hi"].captions)).read_text().splitlines()]
    table = Path(str(tables["hi"].captions)).with_name("mixed.jsonl")
    table.write_text("".join(json.dumps(row | {"language": "de"}) + "\n" for row in hindi))
    monkeypatch.setitem(tables, "de", Corpus("de", [], table, pack))
    config = CONFIG.model_copy(update={"nlt": CONFIG.nlt.model_copy(update={"steps": 0})})
    run = tmp_path / "second"
    assert train(make(run, config))
    rows = LanguagePack.load(pack, Native.load(make(run, config).spec["native"])).tokenizer.row_of
    blocks = (run / "data" / "de" / "le-0000" / "rows").iterdir()
    ids = [each for block in blocks for each in read_parquet(as_path(block))["ids"].to_pylist()]
    assert ids
    assert all((rows[each] >= 0).all() for each in ids)


def test_a_run_from_a_pack_is_of_one_language_and_of_the_packs(
    make: Make, tables: dict[str, Corpus], native_folder: Path, tmp_path: Path
) -> None:
    train(make(tmp_path / "first", CONFIG))
    pack, native = tmp_path / "first" / "packs" / "le" / "de", Native.load(str(native_folder))
    german = Corpus("de", [], tables["de"].captions, pack)
    with pytest.raises(ValueError, match="has one language"):
        prepare(native, [german, tables["hi"]], CONFIG, as_path(tmp_path / "two"))
    hindi = Corpus("hi", [], tables["hi"].captions, pack)
    with pytest.raises(ValueError, match="a pack for 'de', not for 'hi'"):
        prepare(native, [hindi], CONFIG, as_path(tmp_path / "other"))
