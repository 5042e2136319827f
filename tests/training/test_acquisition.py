"""The two stages on a real Ray, with a tiny native.

What is not about Ray's workers trains in this process, which is many seconds faster.
"""

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from mla_ray.data.corpus import Corpus
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.atomic import one_process
from mla_ray.runtime.progress import Progress, Stopped
from mla_ray.training.acquisition import acquire
from mla_ray.training.config import AcquireConfig, Stage
from mla_ray.training.workers import Hooks, Workers, cpus_per_worker

CONFIG = AcquireConfig(
    nlt=Stage(steps=60, batch=8, lr=2e-3),
    le=Stage(steps=14, batch=8, lr=1e-3),
    vocab_size=400,
    checkpoint_every=40,
)


@pytest.fixture(scope="session")
def corpora(
    corpus: dict[str, list[str]], pngs: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Corpus]:
    made, folder = {}, tmp_path_factory.mktemp("tables")
    for language in ("de", "hi"):
        texts = corpus[language]
        # A reading and a spelling: no row says what another says.
        pairs = pa.table(
            {
                "source": corpus["en"] * 2,
                "target": texts + [text.upper() + "!" for text in texts],
                "language": [language] * 2 * len(texts),
            }
        )
        # Each thing is drawn twice: two images share every caption.
        captions = pa.table(
            {
                "image_id": [f"image {number}" for number in range(12)],
                "image": pa.array(pngs, pa.large_binary()),
                "caption": texts * 2,
                "language": [language] * 12,
                "split": ["train"] * 12,
            }
        )
        pq.write_table(pairs, folder / f"pairs-{language}.parquet")
        pq.write_table(captions, folder / f"captions-{language}.parquet")
        made[language] = Corpus(
            language,
            [folder / f"pairs-{language}.parquet"],
            folder / f"captions-{language}.parquet",
        )
    return made


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frozen features are a function of the native, so every run may share them."""
    return tmp_path_factory.mktemp("features")


RunOf = Callable[..., dict[str, Path]]


@pytest.fixture(scope="session")
def run_of(native_folder: Path, store: Path) -> RunOf:
    def run(
        folder: Path, corpora: list[Corpus], config: AcquireConfig = CONFIG, **options: Any
    ) -> dict[str, Path]:
        options = {"store": store} | options
        return acquire(str(native_folder), corpora, config, folder, **options)

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
    torch.set_num_threads(1)  # as a worker of one core has, for the same order of sums
    run_of(folder, [corpora["de"]], workers=Workers(0))
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
        pack = LanguagePack.load(german / "packs" / stage / "de", native)
        return float((pack.encode_text(corpus["de"]) - english).square().mean())

    assert distance("nlt") < 0.9 * distance("fresh")


def test_metrics_are_logged_for_both_stages_and_tensorboard_has_them_too(german: Path) -> None:
    rows = [json.loads(line) for line in (german / "metrics.jsonl").read_text().splitlines()]
    steps = [("nlt", step) for step in range(10, 61, 10)] + [("le", 10), ("le", 14)]
    assert [(row["stage"], row["step"]) for row in rows] == steps
    assert all(np.isfinite(row["loss"]) and row["texts/s"] > 0 for row in rows)
    assert list((german / "tensorboard").glob("events.*"))


def test_without_workers_ray_is_not_even_imported(
    native_folder: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    """By command, with features to encode and both stages to train."""
    config = tmp_path / "config.yaml"
    stage = {"steps": 2, "batch": 8, "lr": 1e-3}
    config.write_text(json.dumps({"nlt": stage, "le": stage, "vocab_size": 400}))
    german = corpora["de"]
    arguments = ["acquire", "--language", "de", "--pairs", german.pairs[0], "--workers", "0"]
    arguments += ["--captions", german.captions, "--native", native_folder, "--json"]
    arguments += ["--config", config, "--out", "packs/de", "--data", "data"]
    code = "import sys; from mla_ray.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    assert 'ray' not in sys.modules"
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["pack"] == "packs/de"
    assert set(read_card(tmp_path / "packs" / "de").stages) == {"nlt", "le"}


def test_without_workers_a_run_is_stopped_and_goes_on_to_the_same_bytes(
    run_of: RunOf, german: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    stop = threading.Event()
    stop.set()
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="run the same command again to continue"):
        run_of(folder, [corpora["de"]], workers=Workers(0), hooks=Hooks(stop=stop))
    packs = run_of(folder, [corpora["de"]], workers=Workers(0), resume=True)
    assert same(packs["de"], german / "packs" / "le" / "de")


def test_blocks_that_are_computed_again_train_the_same_pack(
    run_of: RunOf, german: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    assert "activation_checkpointing" not in json.loads((german / "run.json").read_text())["config"]
    config = CONFIG.model_copy(update={"activation_checkpointing": True})
    packs = run_of(tmp_path / "run", [corpora["de"]], config, workers=Workers(0))
    usual = weights(german / "packs" / "le" / "de")
    for name, weight in weights(packs["de"]).items():
        np.testing.assert_allclose(weight, usual[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pack_on_a_worker_and_without_any(
    ray_cluster: None, run_of: RunOf, german: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    one_core = Workers(cpus=1)
    one, two = (
        run_of(tmp_path / name, [corpora["de"]], workers=one_core)["de"] for name in ("one", "two")
    )
    assert same(one, two)
    assert same(one, german / "packs" / "le" / "de")


@pytest.mark.slow
def test_two_workers_learn_what_one_does(
    ray_cluster: None, german: Path, run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    packs = run_of(tmp_path / "run", [corpora["de"]], workers=Workers(2, cpus=1))
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
        pack = LanguagePack.load(german / "packs" / "le" / "de", native)
        with torch.no_grad():
            english = native.encode_text(native.tokenize(corpus["en"]))
        return english, pack.encode_text(corpus["de"])

    english, de = outputs()
    run_of(tmp_path / "run", [corpora["hi"]], workers=Workers(0))
    english_after, de_after = outputs()
    assert torch.equal(english, english_after)
    assert torch.equal(de, de_after)


def test_without_ray_the_native_is_loaded_once(
    run_of: RunOf,
    corpora: dict[str, Corpus],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A native is hundreds of megabytes, and an acquisition of few pairs takes seconds."""
    loaded: list[str] = []
    load = Native.load

    def counted(name: str, device: str = "cpu") -> Native:
        loaded.append(name)
        return load(name, device)

    monkeypatch.setattr(Native, "load", counted)
    run_of(tmp_path / "run", [corpora["de"]], store=tmp_path / "store", workers=Workers(0))
    assert len(loaded) == 1


def test_languages_trained_together_each_get_a_pack_with_only_their_own_rows(
    run_of: RunOf, native_folder: Path, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"nlt": Stage(steps=8, batch=8, lr=1e-2)})
    packs = run_of(tmp_path / "run", list(corpora.values()), config, workers=Workers(0))
    native = Native.load(str(native_folder))
    loaded = {language: LanguagePack.load(folder, native) for language, folder in packs.items()}
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
    packs = run_of(tmp_path / "run", [corpus], config, workers=Workers(0))
    assert packs["de"].parent.name == "nlt"
    assert set(read_card(packs["de"]).stages) == {"nlt"}


def test_the_vocabulary_of_a_bert_folder_is_taken_with_its_embeddings(
    run_of: RunOf,
    bert_folder: Path,
    corpora: dict[str, Corpus],
    tmp_path: Path,
) -> None:
    config = CONFIG.model_copy(update={"vocabulary": str(bert_folder)})
    packs = run_of(tmp_path / "run", [corpora["de"]], config, workers=Workers(0))
    assert read_card(packs["de"]).row_width == 24
    fresh = weights(tmp_path / "run" / "packs" / "fresh" / "de")
    bert = load_file(bert_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    rows = bert[fresh["embedding.tokens"]].astype(np.float16)
    np.testing.assert_array_equal(fresh["embedding.rows.weight"], rows)


def test_an_existing_run_is_refused_and_a_changed_one_is_not_resumed(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus]
) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        run_of(german, [corpora["de"]])
    changed = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match="config differ"):
        run_of(german, [corpora["de"]], changed, resume=True)


def test_a_second_run_in_the_folder_is_refused_while_the_first_is_at_work(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus]
) -> None:
    with one_process(german), pytest.raises(BlockingIOError, match="another run; wait for it"):
        run_of(german, [corpora["de"]], resume=True)
    assert set(run_of(german, [corpora["de"]], resume=True)) == {"de"}


def test_a_batch_smaller_than_the_workers_is_refused(
    run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"nlt.batch is 8, too small for 9 workers"):
        run_of(tmp_path / "run", [corpora["de"]], workers=Workers(1, most=9))


def test_more_tables_than_a_batch_has_rows_are_refused_before_they_are_read(
    run_of: RunOf, tmp_path: Path
) -> None:
    corpus = Corpus("de", [tmp_path / f"not there {number}.tsv" for number in range(9)])
    with pytest.raises(ValueError, match=r"nlt.batch is 8, too small for the 9 translation tables"):
        run_of(tmp_path / "run", [corpus], CONFIG)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        AcquireConfig(seed=seed)


def test_frozen_features_are_computed_once(
    german: Path, run_of: RunOf, corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    notes: list[Progress] = []
    again = CONFIG.model_copy(update={"seed": 5})
    run_of(
        tmp_path / "run",
        [corpora["de"]],
        again,
        hooks=Hooks(report=notes.append),
        workers=Workers(0),
    )
    last = {note.phase: note.note for note in notes if note.phase.endswith("features")}
    assert last == {"text features": "0 computed", "image features": "0 computed"}


@pytest.mark.parametrize(
    ("cores", "workers", "each"),
    [
        ([2], Workers(1), 2),
        ([2], Workers(2), 1),
        ([2, 1], Workers(1), 2),  # three cores are on no node
        ([0, 8, 8], Workers(3), 4),
        ([0], Workers(2), 1),  # nodes have yet to come
        ([2, 1], Workers(1, resources={"trainer": 1}), 1),
    ],
)
def test_a_worker_gets_its_share_of_a_node_not_of_the_cluster(
    cores: list[int], workers: Workers, each: int
) -> None:
    nodes = [{"CPU": count, "trainer": float(count == 1)} for count in cores]
    assert cpus_per_worker(workers, nodes) == each


def test_workers_are_a_number_a_range_or_none() -> None:
    assert Workers.parse("0") == Workers(0)
    assert Workers.parse("2") == Workers(2)
    assert Workers.parse("1:4") == Workers(1, 4)
    for wrong in ("0:4", "four", "1:", ":2", "-1", ""):
        with pytest.raises(ValueError, match="workers are a number such as 2"):
            Workers.parse(wrong)
