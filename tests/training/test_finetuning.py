"""Promises of fine-tuning: of training.finetuning and its learner, decoded_images and lineage."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mla_ray.data import decoded_images as decoded
from mla_ray.data.decoded_images import DecodedTable, decode
from mla_ray.data.feature_store import encode_images, encode_texts
from mla_ray.data.problems import InvalidTable
from mla_ray.data.video import DECODING
from mla_ray.evaluation.recall import rank
from mla_ray.model.lineage import LINEAGE, copy_native, read_lineage
from mla_ray.model.native import Native
from mla_ray.runtime.storage import as_path, read_json
from mla_ray.training.config import Evaluations, FinetuneConfig
from mla_ray.training.driver import Control, Driver
from mla_ray.training.finetuning import finetune
from mla_ray.training.finetuning_learner import (
    TRAIN,
    VALIDATION,
    DecodedRun,
    FinetuningLearner,
    train,
)
from mla_ray.training.loop import DONE, LOG_EVERY, Diverged
from mla_ray.training.run_spec import check_goes_on
from tests.support import gloo
from tests.support.commands import Mla

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3 * LOG_EVERY
CONFIG = FinetuneConfig(steps=STEPS, batch=8, lr=1e-3, checkpoint_every=7)
HELD = CONFIG.model_copy(update={"held_out": Evaluations(every=5, size=99)})


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Table:
    path: Path
    captions: list[str]
    images: list[bytes]


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def table(
    corpus: dict[str, list[str]], pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Table:
    """Twelve images with two English captions each, for training and again to evaluate on."""
    folder = tmp_path_factory.mktemp("english")
    rows = []
    for number, png in enumerate(pngs):
        (folder / f"{number}.png").write_bytes(png)
        english = corpus["en"][number % 6]
        for split in (TRAIN, VALIDATION):
            for caption in (f"{english} {number}", f"{number} is {english}"):
                row = {"image_id": f"image {number}", "image": f"{number}.png", "split": split}
                rows.append(row | {"language": "en", "caption": caption})
        rows.append(rows[-1] | {"language": "de", "caption": corpus["de"][number % 6]})
    ours = [row for row in rows if row["split"] == TRAIN]
    return Table(
        write_table(folder / "captions.jsonl", rows),
        [row["caption"] for row in ours],
        [pngs[int(row["image_id"].split()[1])] for row in ours],
    )


def learner_of(job: DecodedRun) -> FinetuningLearner:
    return FinetuningLearner(job, Native.load(job.spec["native"]))


Make = Callable[..., DecodedRun]


@pytest.fixture(scope="module")
def make(native_folder: Path, table: Table) -> Make:
    """A run whose table is decoded."""
    native = Native.load(str(native_folder))

    def job(run: Path, config: FinetuneConfig = CONFIG) -> DecodedRun:
        for split in (TRAIN, VALIDATION):
            decode(native, table.path, split, as_path(run) / "data" / split)
        spec = {"native": native.name, "fingerprint": native.fingerprint, "captions": ["…"]}
        return DecodedRun(str(run), spec | {"config": config.model_dump(), "rows": {TRAIN: 24}})

    return job


@pytest.fixture(scope="module")
def tuned(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished fine-tuning without evaluations."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    assert train(make(run))
    return run


def weights(run: Path) -> bytes:
    return (run / "native" / "open_clip_model.safetensors").read_bytes()


def ar(native: Native, table: Table) -> float:
    images, of = np.unique([str(table.images.index(i)) for i in table.images], return_inverse=True)
    pixels = encode_images(native, [table.images[int(place)] for place in images])
    return rank(encode_texts(native, table.captions), pixels, of.astype(np.int64)).recall().ar


def told(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- what it learns -----------------------------------------------------------------------------


def test_a_finetuned_native_loads_and_retrieves_what_its_parent_did_not(
    tuned: Path, native_folder: Path, table: Table
) -> None:
    parent, child = Native.load(str(native_folder)), Native.load(str(tuned / "native"))
    assert child.fingerprint != parent.fingerprint
    assert ar(child, table) > ar(parent, table) + 20
    changed = {
        name
        for name, weight in child.model.state_dict().items()
        if not weight.equal(parent.model.state_dict()[name])
    }
    assert any(name.startswith("visual.") for name in changed), "the image tower trains"
    assert any(name.startswith("transformer.") for name in changed), "the text tower trains"
    assert "logit_scale" not in changed, "the temperature is fixed"


def test_the_parent_and_its_folder_stay_as_they_were(
    tuned: Path, native_folder: Path, native: Native
) -> None:
    assert Native.load(str(native_folder)).fingerprint == native.fingerprint
    assert not (native_folder / LINEAGE).exists()


def test_its_lineage_names_the_parent_and_what_was_done(
    tuned: Path, native_folder: Path, native: Native
) -> None:
    lineage = read_lineage(str(tuned / "native"))
    assert lineage
    assert lineage.fingerprint == Native.load(str(tuned / "native")).fingerprint
    assert [(a.native, a.fingerprint) for a in lineage.ancestors] == [
        (str(native_folder), native.fingerprint)
    ]
    assert lineage.trained["settings"]["lr"] == CONFIG.lr
    assert lineage.trained["figures"] == {"steps": STEPS}
    assert read_lineage(str(native_folder)) is None


def test_a_grandchild_has_both_its_ancestors(tuned: Path, make: Make, tmp_path: Path) -> None:
    child = Native.load(str(tuned / "native"))
    job = make(tmp_path, CONFIG.model_copy(update={"steps": 1}))
    train(DecodedRun(job.run, job.spec | {"native": child.name, "fingerprint": child.fingerprint}))
    lineage, before = read_lineage(str(tmp_path / "native")), read_lineage(child.name)
    assert lineage
    assert before
    assert [a.fingerprint for a in lineage.ancestors] == [
        child.fingerprint,
        *(a.fingerprint for a in before.ancestors),
    ]


# --- the same in, the same out ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tuned: Path, make: Make, tmp_path: Path
) -> None:
    train(make(tmp_path / "same"))
    train(make(tmp_path / "other", CONFIG.model_copy(update={"seed": 1})))
    assert weights(tmp_path / "same") == weights(tuned)
    assert weights(tmp_path / "other") != weights(tuned)


def test_stopped_and_resumed_it_ends_in_the_same_bytes(make: Make, tmp_path: Path) -> None:
    whole, parts = make(tmp_path / "whole", HELD), make(tmp_path / "parts", HELD)
    train(whole)
    wishes = iter([Control.STOP])
    assert not train(parts, Driver(control=lambda: next(wishes)))
    assert not (tmp_path / "parts" / DONE).exists()
    assert told(tmp_path / "parts")[-1]["step"] == LOG_EVERY
    assert train(parts)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    rows = [
        [(row["step"], row.get("loss"), row.get("AR")) for row in told(tmp_path / name)]
        for name in ("parts", "whole")
    ]
    assert rows[0] == rows[1]


def _two_workers(rank: int, world: int, job: DecodedRun) -> None:
    train(job)


@pytest.mark.slow
def test_two_workers_learn_what_one_does(make: Make, tuned: Path, tmp_path: Path) -> None:
    job = make(tmp_path, CONFIG.model_copy(update={"steps": 5, "batch": 7}))
    gloo.together(2, _two_workers, job)
    alone = make(tmp_path / "alone", CONFIG.model_copy(update={"steps": 5, "batch": 7}))
    train(alone)
    one = Native.load(str(tmp_path / "alone" / "native")).model.state_dict()
    two = Native.load(str(tmp_path / "native")).model.state_dict()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-4)


def test_the_first_steps_loss_is_clips_own(make: Make, table: Table, tmp_path: Path) -> None:
    """By open_clip's encoders and cross entropy, with no two rows of one image in the batch."""
    job = make(tmp_path, CONFIG.model_copy(update={"steps": LOG_EVERY, "batch": 2, "lr": 1e-12}))
    train(job)
    native = Native.load(job.spec["native"])
    shots = DecodedTable(as_path(tmp_path) / "data" / TRAIN, native)
    step = LOG_EVERY - 1  # the one whose loss is told
    epoch, start = divmod(2 * step, len(shots))
    rows = np.random.default_rng([0, epoch]).permutation(len(shots))[start : start + 2]
    assert len(set(shots.image[rows])) == 2
    with torch.no_grad():
        image = native.model.encode_image(shots.pixels(shots.image[rows]), normalize=True)
        ids = native.tokenize([shots.caption[row] for row in rows])
        text = native.model.encode_text(ids, normalize=True)
    logits, target = 100 * text @ image.T, torch.arange(2)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert told(tmp_path)[-1]["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_under_autocast_the_features_alone_are_in_bfloat16(make: Make, tmp_path: Path) -> None:
    """Gradients are those of a loss that is worked out where nothing is cast."""
    learner = learner_of(make(tmp_path / "run"))
    native = learner.native
    towers = {name: getattr(native, name) for name in ("encode_text", "encode_image")}
    weights = [w for n, w in native.model.named_parameters() if n != "logit_scale"]

    def gradients(whole: bool) -> list[torch.Tensor]:
        """With autocast around the whole loss, as the loop has it, or each tower alone."""

        def in_bfloat16(name: str, batch: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                features: torch.Tensor = towers[name](batch)
            assert features.dtype == torch.bfloat16
            return features

        for name in towers:
            setattr(native, name, partial(in_bfloat16, name))
        with torch.autocast("cpu", torch.bfloat16, enabled=whole):
            loss = learner.loss(learner.batches("finetune")[0])
        assert loss.dtype == torch.float32
        return list(torch.autograd.grad(loss, weights))

    for found, wanted in zip(gradients(whole=True), gradients(whole=False), strict=True):
        assert torch.equal(found, wanted)


def test_captions_that_say_the_same_are_no_negatives(
    native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    """In a run that 0.1.0 began they go on as they were, by every character."""
    native = Native.load(str(native_folder))
    rows = []
    for number, caption in enumerate(("a dog", "A DOG.")):
        (tmp_path / f"{number}.png").write_bytes(pngs[number])
        row = {"image_id": f"{number}", "image": f"{number}.png", "language": "en"}
        rows.append(row | {"caption": caption, "split": TRAIN})
    table, data = write_table(tmp_path / "captions.jsonl", rows), tmp_path / "run" / "data" / TRAIN
    decode(native, table, TRAIN, as_path(data))
    config = CONFIG.model_copy(update={"batch": 2}).model_dump()
    spec = {"native": native.name, "fingerprint": native.fingerprint, "config": config}

    def loss() -> float:
        job = DecodedRun(str(tmp_path / "run"), spec)
        learner = learner_of(job)
        return float(learner.loss(learner.batches("finetune")[0]).detach())

    assert loss() == 0, "there is nothing to tell apart"
    kept = pq.read_table(data / "rows.parquet").select(["image", "caption"])
    pq.write_table(kept, data / "rows.parquet")
    assert loss() > 0.01


def test_every_row_is_seen_once_in_an_epoch(make: Make, tmp_path: Path) -> None:
    learner = learner_of(make(tmp_path))
    batches = learner.batches("finetune")
    epoch = np.concatenate([batches[step] for step in range(3)])
    assert sorted(epoch.tolist()) == list(range(24))
    assert batches[3].tolist() != batches[0].tolist()


# --- evaluations --------------------------------------------------------------------------------


def test_with_evaluations_the_best_weights_are_what_is_written(
    make: Make, table: Table, tmp_path: Path
) -> None:
    train(make(tmp_path, HELD))
    found = {row["step"]: row["AR"] for row in told(tmp_path) if "AR" in row}
    assert list(found) == list(range(5, STEPS + 1, 5))
    figures = read_json(as_path(tmp_path) / DONE)["figures"]
    best = max(found.values())
    assert figures["AR"] == pytest.approx(best, abs=0.01)
    assert figures["best_step"] == next(step for step, value in found.items() if value == best)
    child = Native.load(str(tmp_path / "native"))
    assert ar(child, table) == pytest.approx(best, abs=1e-6)  # the splits hold the same


def test_without_a_gain_it_ends_early(make: Make, tmp_path: Path) -> None:
    still = Evaluations(every=2, size=99, patience=2)
    config = CONFIG.model_copy(update={"lr": 1e-12, "held_out": still})
    assert train(make(tmp_path, config))
    # The first evaluation is the best, and two without a gain follow.
    assert read_json(as_path(tmp_path) / DONE)["figures"]["steps"] == 6
    assert read_json(as_path(tmp_path) / DONE)["figures"]["best_step"] == 2


def test_a_loss_that_is_no_number_ends_it(make: Make, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 1e30, "warmup": 0.0, "clip": 1e30})
    with pytest.raises(Diverged, match="make lr"):
        train(make(tmp_path, config))
    assert not (tmp_path / DONE).exists()


# --- images decoded once ------------------------------------------------------------------------


def test_pixels_are_what_the_natives_preprocessing_gives(
    native: Native, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "SHARD", 5)
    monkeypatch.setattr(decoded, "GROUP", 2)
    read = decode(native, table.path, TRAIN, as_path(tmp_path))
    assert (read.rows, read.images, read.dropped) == (24, 12, 0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    shots = DecodedTable(as_path(tmp_path), native)
    assert shots.caption == table.captions
    for row, data in enumerate(table.images):
        (tmp_path / "one.png").write_bytes(data)
        theirs = native.preprocess(Image.open(tmp_path / "one.png"))
        assert shots.pixels(shots.image[row : row + 1])[0].equal(theirs)


def test_what_is_decoded_already_is_not_decoded_again(
    native: Native, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "SHARD", 5)
    decode(native, table.path, TRAIN, as_path(tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("index.json", "rows.parquet", "pixels-2-00002.json", "pixels-2-00002.safetensors"):
        (tmp_path / name).unlink()  # as if it had been killed before the last shard
    opened: list[int] = []
    keep = decoded.frames_of
    monkeypatch.setattr(decoded, "frames_of", lambda data: opened.append(1) or keep(data))
    decode(native, table.path, TRAIN, as_path(tmp_path))
    assert len(opened) == 2  # of twelve images
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_was_decoded_in_another_way_is_not_mixed_in(
    native: Native, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade that turns pictures: a table that was whole stays, a part is not used."""
    monkeypatch.setattr(decoded, "SHARD", 5)
    keep = decoded.frames_of
    for name in ("whole", "part"):
        decode(native, table.path, TRAIN, as_path(tmp_path / name))
    for name in ("index.json", "rows.parquet", "pixels-2-00002.json", "pixels-2-00002.safetensors"):
        (tmp_path / "part" / name).unlink()
    before = DecodedTable(as_path(tmp_path / "whole"), native).pixels(np.arange(12))
    monkeypatch.setattr(decoded, "DECODING", DECODING + 1)
    monkeypatch.setattr(
        decoded, "frames_of", lambda data: [frame.rotate(180) for frame in keep(data)]
    )
    for name in ("whole", "part"):
        decode(native, table.path, TRAIN, as_path(tmp_path / name))
    after = DecodedTable(as_path(tmp_path / "part"), native).pixels(np.arange(12))
    assert DecodedTable(as_path(tmp_path / "whole"), native).pixels(np.arange(12)).equal(before)
    assert after.equal(before.flip(-1, -2))


def test_a_run_of_the_rule_of_before_goes_on_and_that_is_told(
    native: Native, tmp_path: Path, recognitions: list[str]
) -> None:
    spec = {"fingerprint": native.fingerprint, "config": {"steps": 4}}
    before = spec | {"fingerprint": native.fingerprint_v1}
    (tmp_path / "run.json").write_text(json.dumps(before))
    check_goes_on(as_path(tmp_path), spec, native, resume=True)
    (said,) = recognitions
    assert said.startswith(f"{tmp_path}: has the fingerprint of mla-ray 0.1.0")
    (tmp_path / "run.json").write_text(json.dumps(spec | {"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="fingerprint differ"):
        check_goes_on(as_path(tmp_path), spec, native, resume=True)


def test_bad_rows_are_refused_with_their_place_or_left_out(
    native: Native, table: Table, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in table.path.read_text().splitlines()]
    for row in rows:
        row["image"] = str(table.path.parent / row["image"])
    (tmp_path / "broken.png").write_bytes(table.images[0][:200])
    first = next(row for row in rows if row["split"] == TRAIN)
    bad = [
        first | {"image": str(tmp_path / "broken.png"), "caption": "broken"},
        first | {"image": str(tmp_path / "gone.png"), "caption": "gone"},
        first,
    ]
    path = write_table(tmp_path / "captions.jsonl", rows + bad)
    lines = [len(rows) + number for number in (1, 2, 3)]
    with pytest.raises(InvalidTable) as refused:
        decode(native, path, TRAIN, as_path(tmp_path / "strict"))
    assert [problem.row for problem in refused.value.problems] == lines
    told = [problem.message for problem in refused.value.problems]
    assert "is cut off" in told[0]
    assert "gone.png" in told[1]
    assert "repeats line" in told[2]
    assert not (tmp_path / "strict" / "index.json").exists()
    read = decode(native, path, TRAIN, as_path(tmp_path / "lenient"), skip_invalid=True)
    assert (read.rows, read.dropped) == (24, 3)
    shots = DecodedTable(as_path(tmp_path / "lenient"), native)
    assert shots.caption == table.captions


# --- on Ray, and by command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "finetune.yaml"
    path.write_text("steps: 12\nbatch: 8\nlr: 1.0e-3\nheld_out: {every: 6}\n")
    return path


@pytest.mark.slow
def test_finetune_by_command_leaves_a_native_that_evaluates(
    mla: Mla, ray_cluster: None, native_folder: Path, table: Table, config_file: Path
) -> None:
    arguments = ["finetune", "--captions", table.path, "--native", native_folder]
    arguments += ["--config", config_file, "--out", "natives/tuned", "--json"]
    run = mla(*arguments)
    assert run.code == 0, run.err
    assert isinstance(run.json, dict)
    assert set(run.json) == {"native", "fingerprint", "steps", "AR", "best_step", "dropped"}
    assert (run.json["native"], run.json["steps"], run.json["dropped"]) == ("natives/tuned", 12, 0)
    common = ["--captions", table.path, "--language", "en", "--split", VALIDATION, "--json"]
    after = mla("evaluate", "--native", "natives/tuned", *common)
    assert after.code == 0, after.err
    assert isinstance(after.json, dict)
    assert after.json["AR"] == pytest.approx(run.json["AR"], abs=0.02)
    assert mla(*arguments, "--no-resume").code == 1
    assert mla(*arguments).json == run.json


@pytest.mark.slow
def test_two_ray_workers_finetune_and_the_run_may_not_change(
    ray_cluster: None, native_folder: Path, table: Table, tmp_path: Path
) -> None:
    from mla_ray.training.workers import Workers

    config = CONFIG.model_copy(update={"steps": 4})
    run = tmp_path / "run"
    made = finetune(str(native_folder), table.path, config, run, workers=Workers(2, cpus=1))
    assert made.figures == {"steps": 4}
    assert Native.load(str(run / "native")).fingerprint == made.fingerprint
    longer = config.model_copy(update={"steps": 5})
    with pytest.raises(ValueError, match="config differ"):
        finetune(str(native_folder), table.path, longer, run, resume=True)


@pytest.mark.slow
def test_a_refused_table_may_be_mended_and_run_the_same_way(
    ray_cluster: None, native_folder: Path, tmp_path: Path
) -> None:
    row = {"image_id": "1", "image": "none.png", "language": "en", "caption": "a", "split": TRAIN}
    table = write_table(tmp_path / "captions.jsonl", [row])
    with pytest.raises(InvalidTable, match="none"):
        finetune(str(native_folder), table, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_native_does_not_replace_what_is_no_native(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a native"):
        copy_native(as_path(tuned / "native"), tmp_path)
    copy_native(as_path(tuned / "native"), tmp_path / "new")
    copied, made = (Native.load(str(folder)) for folder in (tmp_path / "new", tuned / "native"))
    assert copied.fingerprint == made.fingerprint


def test_a_native_is_copied_as_a_whole_and_after_a_copy_that_was_killed(
    tuned: Path, native_folder: Path, tmp_path: Path
) -> None:
    made = Native.load(str(tuned / "native")).fingerprint
    target = tmp_path / "new"
    copy_native(as_path(native_folder), target)
    (target / "notes.txt").write_text("of the native before")
    copy_native(as_path(tuned / "native"), target)
    names = sorted(path.name for path in (tuned / "native").iterdir())
    assert sorted(path.name for path in target.iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (target / "open_clip_config.json").unlink()  # as 0.1.0 left it when it was killed
    copy_native(as_path(tuned / "native"), target)
    assert Native.load(str(target)).fingerprint == made
    target.rename(tmp_path / ".new-old-0a1b2c3d")  # killed between two renames
    assert Native.load(str(target)).fingerprint == made
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
