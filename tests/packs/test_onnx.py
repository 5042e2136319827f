"""Promises of mla_ray.packs.onnx: what onnxruntime finds is what PyTorch finds."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer, learn
from mla_ray.packs import onnx as export
from mla_ray.packs.card import make_card
from mla_ray.packs.files import PackError
from mla_ray.packs.onnx import TOLERANCE, LanguageGraph, export_onnx
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path
from mla_ray.training.pretraining import save_native
from tests.support.commands import Mla
from tests.support.natives import CONTEXT, TEXT, VISION, BuildModel

Tokenize = Callable[..., torch.Tensor]
TEXTS = [
    "ein Hund",
    "",
    "zwei Hunde spielen im Schnee und ein roter Regenschirm",
    "एक Hund कुत्ता",  # most of it has no row in a German pack
    "Katze " * 40,  # longer than the context
    "कुत्ता " * 40 + "Katze",
    "Xylophon!",
]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(folder: Path, texts: Sequence[str], more: int = 0) -> np.ndarray:
    """As the docs say it is done; with `more` columns of nonsense behind every text."""
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    lengths = np.array([sum(e.attention_mask) for e in encodings], dtype=np.int64)
    ids = np.pad(ids, ((0, 0), (0, more)), constant_values=7)
    feed = {"token_ids": ids, "lengths": lengths}
    (features,) = session(folder / "text.onnx").run(["features"], feed)
    return features  # type: ignore[no-any-return]


def pack_on(native: Native, texts: list[str], seed: int = 0) -> LanguagePack:
    """As conftest's, on any native."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = LanguageTokenizer.for_corpus(learn(texts, 500), texts, CONTEXT)
    rows = learned_rows(len(tokenizer.tokens), native.text, generator)
    encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), hidden=16)
    with torch.no_grad():
        for weight in encoder.acquirers.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return LanguagePack(make_card(native, "de", encoder), encoder, tokenizer)


@pytest.fixture(scope="module")
def clip(build_model: BuildModel, tokenize: Tokenize) -> Native:
    """Of one block: to trace one takes a second."""
    return Native("one-block-clip", build_model(layers=1), tokenize)


@pytest.fixture(scope="module")
def german(clip: Native, corpus: dict[str, list[str]]) -> LanguagePack:
    return pack_on(clip, corpus["de"]).with_half_rows()


@pytest.fixture(scope="module")
def exported(german: LanguagePack, clip: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three graphs of a small CLIP."""
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(german, clip, folder, image=True, english=True)
    return folder


@pytest.mark.parametrize("size", [1, 2, 3, len(TEXTS)])
def test_a_causal_tower_with_its_pack_finds_what_pytorch_finds(
    exported: Path, german: LanguagePack, size: int
) -> None:
    expected = german.encode_text(TEXTS).numpy()
    assert np.abs(expected).max() > 0.1
    for start in range(len(TEXTS) - size + 1):
        part = slice(start, start + size)
        found = run(exported, TEXTS[part])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[part], rtol=0, atol=TOLERANCE)


def test_no_texts_are_no_features(exported: Path) -> None:
    feed = {"token_ids": np.zeros((0, 3), np.int64), "lengths": np.zeros(0, np.int64)}
    (features,) = session(exported / "text.onnx").run(["features"], feed)
    assert features.shape == (0, 32)
    (features,) = session(exported / "english.onnx").run(
        ["features"], {"token_ids": np.zeros((0, 3), np.int64)}
    )
    assert features.shape == (0, 32)


def test_what_follows_a_text_is_not_looked_at(exported: Path) -> None:
    np.testing.assert_allclose(
        run(exported, TEXTS, more=9), run(exported, TEXTS), rtol=0, atol=1e-5
    )


def test_the_english_tower_finds_what_the_native_finds(
    exported: Path, clip: Native, corpus: dict[str, list[str]]
) -> None:
    ids = clip.tokenize(corpus["en"])
    with torch.inference_mode():
        expected = clip.encode_text(ids).numpy()
    english = session(exported / "english.onnx")
    longest = int(clip.text.english_end(ids).max()) + 1
    for count in (1, 2, len(ids)):
        for length in (longest, ids.shape[1]):
            feed = {"token_ids": ids[:count, :length].numpy()}
            (found,) = english.run(["features"], feed)
            np.testing.assert_allclose(found, expected[:count], rtol=0, atol=TOLERANCE)


def test_the_image_tower_finds_what_the_native_finds(exported: Path, clip: Native) -> None:
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = clip.encode_image(pixels).numpy()
    image = session(exported / "image.onnx")
    for count in (1, 2, 5):
        (found,) = image.run(["features"], {"pixels": pixels[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=TOLERANCE)


def test_the_files_say_what_they_are(exported: Path, german: LanguagePack, clip: Native) -> None:
    info = json.loads((exported / "export.json").read_text())
    files = {"text.onnx", "english.onnx", "image.onnx", "tokenizer.json"}
    assert set(info["sha256"]) == files
    assert {path.name for path in exported.iterdir()} == files | {"export.json"}
    for name, digest in info["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    assert (info["language"], info["dim"], info["context_length"]) == ("de", 32, CONTEXT)
    assert info["fingerprint"] == clip.fingerprint == german.card.fingerprint
    assert info["logit_scale"] == clip.logit_scale
    assert info["preprocess"]["size"] == [32, 32]
    assert 0 < max(graph["largest_difference"] for graph in info["graphs"].values()) < 1e-4
    for name in files - {"tokenizer.json"}:
        graph = onnx.load(exported / name).graph
        inputs = info["graphs"][name.removesuffix(".onnx")]["inputs"]
        assert [value.name for value in graph.input] == list(inputs)
        for value in graph.input:
            axes = [axis.dim_param or None for axis in value.type.tensor_type.shape.dim]
            assert axes == inputs[value.name]
        assert [value.name for value in graph.output] == ["features"]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_bidirectional_tower_finds_what_pytorch_finds(
    build_model: BuildModel,
    tokenize: Tokenize,
    corpus: dict[str, list[str]],
    tmp_path: Path,
    masked: bool,
) -> None:
    kind = {"pool_type": "first"} if masked else {"pool_type": "last", "proj_bias": True}
    model = build_model(open_clip.CustomTextCLIP, no_causal_mask=True, layers=1, **kind)
    model.text.use_pad_mask = masked  # type: ignore[union-attr]
    native = Native("tiny-siglip", model, tokenize)
    assert native.text.fixed_length
    pack = pack_on(native, corpus["de"])
    export_onnx(pack, native, tmp_path / "onnx")
    expected = pack.encode_text(TEXTS).numpy()
    for part in (slice(0, 1), slice(1, 3), slice(0, len(TEXTS))):
        found = run(tmp_path / "onnx", TEXTS[part])
        np.testing.assert_allclose(found, expected[part], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tower", ["clip", "bidirectional"])
def test_the_graph_skips_and_cuts_tokens_as_the_tokenizer_does(
    tower: str, corpus: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    """Against `LanguageTokenizer.rows_of`, which does it text by text in numpy."""
    rng = np.random.default_rng(0)
    pack = pack_on(request.getfixturevalue(tower), corpus["de"])
    graph, tokenizer = LanguageGraph(pack).eval(), pack.tokenizer
    end, size = tokenizer.end, len(tokenizer.row_of)
    for _ in range(60):
        batch, length = int(rng.integers(1, 6)), int(rng.integers(2, 3 * CONTEXT))
        ids = rng.integers(0, size, (batch, length))
        ids[ids == end] = 1
        lengths = rng.integers(2, length + 1, batch)
        ids[np.arange(batch), lengths - 1] = end
        ids[:, 0] = 1
        token_ids = torch.from_numpy(ids)
        with torch.inference_mode():
            found = graph(token_ids, torch.from_numpy(lengths))
        expected = pack.encode_ids(token_ids)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    exported: Path,
    clip: Native,
    corpus: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_another(graph: object, path: Path) -> None:
        shutil.copyfile(exported / path.name, path)

    monkeypatch.setattr(export, "_write", write_another)
    other = pack_on(clip, corpus["de"], seed=1)
    with pytest.raises(ValueError, match=r"text.onnx: features differ from PyTorch's by .*e[+-]"):
        export_onnx(other, clip, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_pack_of_another_native_is_refused(
    german: LanguagePack, other_native: Native, tmp_path: Path
) -> None:
    with pytest.raises(PackError, match=r"'one-block-clip'.*'other-clip'"):
        export_onnx(german, other_native, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_says_what_to_install(
    german: LanguagePack, clip: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxscript" else real(n)
    )
    with pytest.raises(ValueError, match=r"needs onnxscript; pip install onnxscript"):
        export_onnx(german, clip, tmp_path)


@pytest.mark.slow
def test_export_from_the_command_line(
    mla: Mla,
    build_model: BuildModel,
    english_tokenizer: PreTrainedTokenizerFast,
    corpus: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT | {"layers": 1}}
    save_native(tmp_path / "clip", build_model(layers=1), config, english_tokenizer)
    pack = pack_on(Native.load(str(tmp_path / "clip")), corpus["de"])
    pack.save("packs/de")
    flags = ["--native", tmp_path / "clip", "--json"]
    made = mla("pack", "export", "packs/de", "--onnx", "onnx", *flags)
    assert made.code == 0, made.err
    out = json.loads(made.out)
    assert out["out"] == str(as_path("onnx"))
    assert 0 < out["differences"]["text"] < 1e-4
    expected = pack.encode_text(TEXTS).numpy()
    np.testing.assert_allclose(run(tmp_path / "onnx", TEXTS), expected, rtol=0, atol=TOLERANCE)
    refused = mla("pack", "export", "packs/de", "--onnx", "onnx", "--language", "fr", *flags)
    assert refused.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_tower_of_transformers_finds_what_pytorch_finds(
    build_model: BuildModel,
    bert_folder: Path,
    corpus: dict[str, list[str]],
    tmp_path: Path,
    kind: str,
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert_folder, folder)
    config = AutoConfig.from_pretrained(bert_folder).to_dict()
    del config["model_type"]
    AutoConfig.for_model(kind, **config).save_pretrained(folder)
    model = build_model(
        open_clip.CustomTextCLIP,
        hf_model_name=str(folder),
        hf_model_pretrained=False,
        hf_pooler_type="mean_pooler",
        hf_proj_type="mlp",
    )
    native = Native("bert", model, HFTokenizer(str(folder), context_length=CONTEXT))
    pack = pack_on(native, corpus["de"])
    export_onnx(pack, native, tmp_path / "onnx", english=True)
    expected = pack.encode_text(TEXTS).numpy()
    for part in (slice(0, 1), slice(1, 3), slice(0, len(TEXTS))):
        found = run(tmp_path / "onnx", TEXTS[part])
        np.testing.assert_allclose(found, expected[part], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_the_bundled_native_finds_what_pytorch_finds(
    corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    native = Native.load("emoji-clip")
    texts = corpus["de"]
    tokenizer = LanguageTokenizer.for_corpus(learn(texts, 500), texts, native.text.context_length)
    rows = learned_rows(len(tokenizer.tokens), native.text, torch.Generator().manual_seed(0))
    encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), hidden=96)
    pack = LanguagePack(make_card(native, "de", encoder), encoder, tokenizer)
    made = export_onnx(pack, native, tmp_path, image=True, english=True)
    assert max(made.differences.values()) < TOLERANCE
    expected = pack.encode_text(TEXTS).numpy()
    np.testing.assert_allclose(run(tmp_path, TEXTS), expected, rtol=0, atol=TOLERANCE)
