"""The two stages on a real Ray, with a tiny native."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file

from mla_ray.config import AcquireConfig, Stage
from mla_ray.native import Native
from mla_ray.pack import Pack, read_card
from mla_ray.training import Corpus, Progress, acquire, groups

CONFIG = AcquireConfig(
    nlt=Stage(steps=60, batch=8, lr=2e-3),
    le=Stage(steps=14, batch=8, lr=1e-3),
    vocab_size=400,
    checkpoint_every=40,
)


@pytest.fixture(scope="session")
def corpora(corpus: dict[str, list[str]], pngs: list[bytes]) -> dict[str, Corpus]:
    made = {}
    for language in ("de", "hi"):
        texts = corpus[language]
        pairs = pa.table({"source": corpus["en"] * 2, "target": texts * 2})
        # Each thing is drawn twice: two images share every caption.
        captions = pa.table(
            {
                "image_id": [f"image {number}" for number in range(12)],
                "image": pa.array(pngs, pa.large_binary()),
                "caption": texts * 2,
            }
        )
        made[language] = Corpus(language, [pairs], captions)
    return made


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frozen features are a function of the native, so every run may share them."""
    return tmp_path_factory.mktemp("features")


RunOf = Callable[..., dict[str, Path]]


@pytest.fixture(scope="session")
def run_of(ray_cluster: None, native_folder: Path, store: Path) -> RunOf:
    def run(
        folder: Path, corpora: list[Corpus], config: AcquireConfig = CONFIG, **options: Any
    ) -> dict[str, Path]:
        return acquire(str(native_folder), corpora, config, folder, store=store, **options)

    return run


def weights(pack: Path) -> dict[str, np.ndarray]:
    return load_file(pack / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    return (one / "weights.safetensors").read_bytes() == (
        other / "weights.safetensors"
    ).read_bytes()


@pytest.fixture(scope="session")
def german(
    run_of: RunOf, corpora: dict[str, Corpus], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of a finished German acquisition."""
    folder = tmp_path_factory.mktemp("german") / "run"
    run_of(folder, [corpora["de"]])
    return folder


def test_a_run_leaves_a_pack_for_every_stage_and_each_stage_changes_it(german: Path) -> None:
    packs = [german / "packs" / stage / "de" for stage in ("fresh", "nlt", "le")]
    for before, after in itertools.pairwise(packs):
        assert not same(before, after)
    up = [name for name in weights(packs[0]) if ".up." in name]
    assert up
    assert all(not weights(packs[0])[name].any() for name in up), "a fresh pack is the identity"
    assert set(read_card(packs[2]).stages) == {"nlt", "le"}


def test_nlt_brings_the_language_to_the_english_features(
    german: Path, native_folder: Path, corpus: dict[str, list[str]]
) -> None:
    native = Native.load(str(native_folder))
    with torch.no_grad():
        english = native.encode_text(native.tokenize(corpus["en"]))

    def distance(stage: str) -> float:
        pack = Pack.load(german / "packs" / stage / "de", native)
        return float((pack.encode_text(corpus["de"]) - english).square().mean())

    assert distance("nlt") < 0.9 * distance("fresh")


def test_metrics_are_logged_for_both_stages_and_tensorboard_has_them_too(german: Path) -> None:
    rows = [json.loads(line) for line in (german / "metrics.jsonl").read_text().splitlines()]
    steps = [("nlt", step) for step in range(10, 61, 10)] + [("le", 10), ("le", 14)]
    assert [(row["stage"], row["step"]) for row in rows] == steps
    assert all(np.isfinite(row["loss"]) and row["texts/s"] > 0 for row in rows)
    assert list((german / "tensorboard").glob("events.*"))


def test_the_same_seed_gives_the_same_pack(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    packs = run_of(tmp_path / "run", [corpora["de"]])
    assert same(packs["de"], german / "packs" / "le" / "de")


def test_two_workers_learn_what_one_does(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    packs = run_of(tmp_path / "run", [corpora["de"]], workers=2)
    one, two = weights(german / "packs" / "le" / "de"), weights(packs["de"])
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=2e-4, err_msg=name)


def test_acquiring_another_language_leaves_a_pack_and_english_to_the_byte(
    german: Path,
    run_of: RunOf,
    native_folder: Path,
    corpora: dict[str, Corpus],
    corpus: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        native = Native.load(str(native_folder))
        pack = Pack.load(german / "packs" / "le" / "de", native)
        with torch.no_grad():
            english = native.encode_text(native.tokenize(corpus["en"]))
        return english, pack.encode_text(corpus["de"])

    english, de = outputs()
    run_of(tmp_path / "run", [corpora["hi"]])
    english_after, de_after = outputs()
    assert torch.equal(english, english_after)
    assert torch.equal(de, de_after)


def test_languages_trained_together_each_get_a_pack_with_only_their_own_rows(
    run_of: RunOf, native_folder: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"nlt": Stage(steps=8, batch=8, lr=1e-2)})
    packs = run_of(tmp_path / "run", list(corpora.values()), config)
    native = Native.load(str(native_folder))
    loaded = {language: Pack.load(folder, native) for language, folder in packs.items()}
    tokens = {language: set(pack.tokenizer.tokens) for language, pack in loaded.items()}
    assert tokens["de"] - tokens["hi"]
    assert tokens["hi"] - tokens["de"]
    acquirer = "acquirers.0.up.weight"
    assert not np.array_equal(weights(packs["de"])[acquirer], weights(packs["hi"])[acquirer])


def test_without_captions_nlt_alone_makes_the_pack(
    run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"le": Stage(steps=0, batch=8, lr=1e-3)})
    corpus = Corpus("de", corpora["de"].pairs, None)
    packs = run_of(tmp_path / "run", [corpus], config)
    assert packs["de"].parts[-2] == "nlt"
    assert set(read_card(packs["de"]).stages) == {"nlt"}


def test_the_vocabulary_of_a_bert_folder_is_taken_with_its_embeddings(
    run_of: RunOf,
    bert_folder: Path,
    corpora: dict[str, Corpus],
    tmp_path: Path,
) -> None:
    config = CONFIG.model_copy(update={"vocabulary": str(bert_folder)})
    packs = run_of(tmp_path / "run", [corpora["de"]], config)
    assert read_card(packs["de"]).row_width == 24
    fresh = weights(tmp_path / "run" / "packs" / "fresh" / "de")
    bert = load_file(bert_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(fresh["embedding.rows.weight"], bert[fresh["embedding.tokens"]])


def test_an_existing_run_is_refused_and_a_changed_one_is_not_resumed(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus]
) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        run_of(german, [corpora["de"]])
    changed = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match="config differ"):
        run_of(german, [corpora["de"]], changed, resume=True)


def test_a_batch_that_workers_cannot_share_is_refused(
    run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"nlt.batch is 8, not a multiple of the 3 workers"):
        run_of(tmp_path / "run", [corpora["de"]], workers=3)


def test_frozen_features_are_computed_once(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    notes: list[Progress] = []
    again = CONFIG.model_copy(update={"seed": 5})
    run_of(tmp_path / "run", [corpora["de"]], again, report=notes.append)
    features = [note for note in notes if note.phase.endswith("features")]
    assert {note.phase for note in features} == {"text features", "image features"}
    assert all(note.note == "0 computed" for note in features)


DRIVER = """
import sys, pickle
from pathlib import Path
from mla_ray.cluster import ray_session
from mla_ray.training import acquire
native, run, store, job = sys.argv[1:]
corpus, config = pickle.loads(Path(job).read_bytes())
with ray_session(cpus=2):
    acquire(native, [corpus], config, Path(run), store=Path(store), resume=True)
"""


def test_killed_and_resumed_gives_the_pack_of_an_uninterrupted_run(
    run_of: RunOf, native_folder: Path, store: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    """The driver and its whole Ray are killed after a checkpoint, then started again."""
    import pickle

    config = CONFIG.model_copy(update={"nlt": Stage(steps=1500, batch=8, lr=1e-3)})
    config = config.model_copy(update={"checkpoint_every": 100})
    whole = run_of(tmp_path / "whole", [corpora["de"]], config)
    job = tmp_path / "job.pickle"
    job.write_bytes(pickle.dumps((corpora["de"], config)))
    command = [
        sys.executable,
        "-c",
        DRIVER,
        str(native_folder),
        str(tmp_path / "cut" / "run"),
        str(store),
        str(job),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    first = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    snapshot = tmp_path / "cut" / "run" / "train" / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 240
    while not snapshot.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert snapshot.exists(), "no checkpoint before the run ended"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "cut" / "run" / "packs" / "le").exists(), "it was cut too late"
    subprocess.run(command, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert same(whole["de"], tmp_path / "cut" / "run" / "packs" / "le" / "de")
    lines = (tmp_path / "cut" / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [(row["stage"], row["step"]) for row in map(json.loads, lines)]
    assert steps.count(("nlt", 10)) == 1, "it began anew"
    assert steps.count(("le", 14)) == 1


def test_rows_that_share_an_image_or_a_caption_are_one_group() -> None:
    images = ["a", "b", "c", "c", "d"]
    captions = ["apple", "apple", "pear", "fruit", "plum"]
    assert groups(images, captions).tolist() == [0, 0, 1, 1, 2]
