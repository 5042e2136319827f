"""A tiny English native with random weights, packs on it, and texts: made here, fetched nowhere."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from mla_ray import cli
from mla_ray.model import recognition
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.objectives import nlt_loss
from mla_ray.model.tokenizers import BOS, EOS, PAD, LanguageTokenizer, learn
from mla_ray.packs.card import make_card
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.cluster import ray_session, set_environment
from mla_ray.training.config import AcquireConfig
from mla_ray.training.optimizer import Optimizer
from mla_ray.training.pretraining import save_native
from tests.support.bulk import without_ray
from tests.support.commands import Mla, Run
from tests.support.disks import MB, mounted_disk
from tests.support.natives import CONTEXT, TEXT, VISION, BuildModel, MakePack, Train
from tests.support.qdrant import OwnQdrant, own_qdrant
from tests.support.server import Served, serving

set_environment()  # before the test modules, some of which import Ray


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of its own for the identities of natives, also for processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus() -> dict[str, list[str]]:
    """Line by line the same things."""
    return {
        "en": [
            "a dog",
            "two dogs play in the snow",
            "a red umbrella",
            "cat",
            "the sun rises over the sea and a small boat sails towards the harbour",
            "grapes",
        ],
        "de": [
            "ein Hund",
            "zwei Hunde spielen im Schnee",
            "ein roter Regenschirm",
            "Katze",
            "die Sonne geht über dem Meer auf und ein kleines Boot fährt zum Hafen",
            "Weintrauben",
        ],
        "hi": [
            "एक कुत्ता",
            "दो कुत्ते बर्फ में खेलते हैं",
            "लाल छाता",
            "बिल्ली",
            "समुद्र पर सूरज उगता है",
            "अंगूर",
        ],
    }


@pytest.fixture(scope="session")
def english_tokenizer(corpus: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=learn(corpus["en"] * 2, 400),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
    )


@pytest.fixture(scope="session")
def build_model(english_tokenizer: PreTrainedTokenizerFast) -> BuildModel:
    def build(kind: type[nn.Module] = open_clip.CLIP, seed: int = 0, **text: Any) -> nn.Module:
        torch.manual_seed(seed)
        text_cfg = TEXT | {"vocab_size": len(english_tokenizer)} | text
        model = kind(embed_dim=32, vision_cfg=dict(VISION), text_cfg=text_cfg).eval()
        model.half().float()  # so that a float16 file holds the same weights
        preprocess = PreprocessCfg(size=(32, 32), resize_mode="squash")
        open_clip.set_model_preprocess_cfg(model, asdict(preprocess))
        return model

    return build


@pytest.fixture(scope="session")
def native_folder(
    build_model: BuildModel,
    english_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """In open_clip's layout, as `mla_ray.training.pretraining` writes it."""
    folder = tmp_path_factory.mktemp("natives") / "tiny-clip"
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    save_native(folder, build_model(), config, english_tokenizer)
    return folder


@pytest.fixture(scope="session")
def tokenize(native_folder: Path) -> Callable[..., torch.Tensor]:
    return open_clip.get_tokenizer(f"local-dir:{native_folder}")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def native(build_model: BuildModel, tokenize: Callable[..., torch.Tensor]) -> Native:
    return Native("tiny-clip", build_model(), tokenize)


@pytest.fixture(scope="session")
def other_native(build_model: BuildModel, tokenize: Callable[..., torch.Tensor]) -> Native:
    """Of the same shape as `native`, with other weights."""
    return Native("other-clip", build_model(seed=1), tokenize)


@pytest.fixture(scope="session")
def bidirectional(build_model: BuildModel, tokenize: Callable[..., torch.Tensor]) -> Native:
    """Its text tower is SigLIP's: no causal mask, pooled at the last position, a biased head."""
    model = build_model(
        open_clip.CustomTextCLIP,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_kwargs={"eps": 1e-6},
    )
    return Native("tiny-siglip", model, tokenize)


@pytest.fixture(scope="session")
def make_pack(native: Native, corpus: dict[str, list[str]]) -> MakePack:
    def make(
        language: str,
        seed: int = 0,
        texts: list[str] | None = None,
        share: LanguagePack | None = None,
    ) -> LanguagePack:
        generator = torch.Generator().manual_seed(seed)
        if share:
            tokenizer, embedding = share.tokenizer, share.encoder.embedding
        else:
            texts = texts or corpus[language]
            tokenizer = LanguageTokenizer.for_corpus(learn(texts, 500), texts, CONTEXT)
            rows = learned_rows(len(tokenizer.tokens), native.text, generator)
            embedding = EmbeddingBlock(rows, native.text)
        encoder = LanguageEncoder(native.text, embedding, hidden=16)
        with torch.no_grad():
            for weight in encoder.acquirers.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        return LanguagePack(make_card(native, language, encoder), encoder, tokenizer)

    return make


@pytest.fixture(scope="session")
def train(native: Native) -> Train:
    """A few steps of Native Language Transfer."""

    def run(encoder: nn.Module, ids: torch.Tensor, lengths: torch.Tensor, steps: int = 3) -> None:
        weights = dict(encoder.named_parameters())
        rows = weights.pop("embedding.rows.weight")
        config = AcquireConfig()
        optimizer = Optimizer(weights.values(), config.weight_decay, rows)
        target = torch.randn(len(ids), native.dim, generator=torch.Generator().manual_seed(9))
        for _ in range(steps):
            nlt_loss(encoder(ids, lengths), target).backward()
            optimizer.all_reduce()
            optimizer.clip_grad_norm_(config.clip)
            optimizer.step(1e-2)
            optimizer.zero_grad()

    return run


@pytest.fixture
def recognitions() -> Iterator[list[str]]:
    """What was told of fingerprints by the rule of before."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    handler = Keep()
    recognition.log.addHandler(handler)
    yield said
    recognition.log.removeHandler(handler)


@pytest.fixture(scope="session")
def pngs() -> list[bytes]:
    """Twelve images, each unlike the others."""
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


@pytest.fixture(scope="session")
def bert_folder(corpus: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with a WordPiece vocabulary, as `save_pretrained` writes it."""
    from transformers import BertConfig, BertModel  # seconds to import

    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word for line in corpus["de"] for word in line.split()}
    letters = {letter for word in words for letter in word}
    pieces = special + sorted(letters | {f"##{letter}" for letter in letters} | words)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.hookimpl(trylast=True)  # what `-m` leaves out decides nothing
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need Ray come first: they take longest, and `make test` runs two at a time."""
    using_ray = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in using_ray)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private Ray for the whole test session."""
    with ray_session(cpus=2, dashboard=True):
        yield


@pytest.fixture(params=["here", pytest.param("by Ray", marks=pytest.mark.slow)])
def indexing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`index_table` works in this process, which is quicker, and with Ray."""
    if request.param == "here":
        without_ray(monkeypatch)
    else:
        request.getfixturevalue("ray_cluster")


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The emoji, as `mla serve` shows them; acquires German first if `make demo` has not."""
    with serving() as server:
        yield server


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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 MB that a test may fill."""
    with mounted_disk(tmp_path, 300 * MB) as at:
        yield at


@pytest.fixture
def qdrant(disk: Path) -> Iterator[OwnQdrant]:
    """A Qdrant server with its data on `disk`."""
    with own_qdrant(disk / "qdrant") as server:
        yield server
