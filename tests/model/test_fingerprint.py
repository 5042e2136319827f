"""Promises of mla_ray.model.fingerprint: what changes an output is seen, and nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mla_ray.model.native import Native
from tests.support.natives import CONTEXT, BuildModel, save_clip_tokenizer

Build = Callable[[], tuple[nn.Module, Any]]


@pytest.fixture(scope="module", params=["CLIP", "SigLIP", "RoBERTa"])
def build(
    request: pytest.FixtureRequest,
    build_model: BuildModel,
    native_folder: Path,
    bert_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Build:
    """A model and its tokenizer, each time anew and the same: one for each kind of text tower."""

    def clip() -> tuple[nn.Module, Any]:
        return build_model(), open_clip.get_tokenizer(f"local-dir:{native_folder}")

    def siglip() -> tuple[nn.Module, Any]:
        text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        model = build_model(open_clip.CustomTextCLIP, **text)
        return model, HFTokenizer(str(native_folder), CONTEXT, clean="canonicalize")

    def roberta() -> tuple[nn.Module, Any]:
        model = build_model(
            open_clip.CustomTextCLIP, hf_model_name=str(folder), hf_model_pretrained=False
        )
        return model, HFTokenizer(str(bert_folder), CONTEXT)

    from transformers import RobertaConfig

    folder = tmp_path_factory.mktemp("roberta")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 24, "vocab_size": 120, "max_position_embeddings": 64}
    RobertaConfig(**sizes, **more, pad_token_id=0).save_pretrained(folder)
    return {"CLIP": clip, "SigLIP": siglip, "RoBERTa": roberta}[request.param]


def text_of(model: Any) -> Any:
    return getattr(model, "text", model)


# --- of every kind ------------------------------------------------------------------------------


def exchange_words(model: Any, tokenizer: Any) -> None:
    """Two tokens have each other's id; everything about the vocabulary but that is as it was."""
    backend = json.loads(tokenizer.tokenizer.backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    first, second = [token for token in vocab if token.isalpha()][-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    swapped = type(tokenizer.tokenizer.backend_tokenizer).from_str(json.dumps(backend))
    tokenizer.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=swapped, **tokenizer.tokenizer.special_tokens_map
    )


def clean_otherwise(model: Any, tokenizer: Any) -> None:
    tokenizer.clean_fn = str.upper


def truncate_at_the_left(model: Any, tokenizer: Any) -> None:
    tokenizer.tokenizer.truncation_side = "left"


def pool_otherwise(model: Any, tokenizer: Any) -> None:
    text = text_of(model)
    if hasattr(text, "pooler"):
        text.pooler = open_clip.hf_model.ClsLastHiddenStatePooler()
    elif text is model:
        model.text_pool_type = "last"
    else:
        text.pool_type = "first"


def more_heads(model: Any, tokenizer: Any) -> None:
    text = text_of(model)
    if hasattr(text, "config"):
        text.config.num_attention_heads = 4
        for layer in text.transformer.encoder.layer:
            layer.attention.self.num_attention_heads = 4
            layer.attention.self.attention_head_size = 6
        return
    for block in text.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 4, 8


def another_activation(model: Any, tokenizer: Any) -> None:
    """In the text tower."""
    text = text_of(model)
    if hasattr(text, "config"):
        text.config.hidden_act = "relu"
        for layer in text.transformer.encoder.layer:
            layer.intermediate.intermediate_act_fn = nn.ReLU()
        return
    for block in text.transformer.resblocks:
        block.mlp.gelu = QuickGELU()


def another_epsilon(model: Any, tokenizer: Any) -> None:
    text = text_of(model)
    if hasattr(text, "config"):
        text.config.layer_norm_eps = 0.1
        text.transformer.embeddings.LayerNorm.eps = 0.1
        return
    text.ln_final.eps = 0.1


def heads_of_images(model: Any, tokenizer: Any) -> None:
    for block in model.visual.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 4, 8


def activation_of_images(model: Any, tokenizer: Any) -> None:
    """The GELU that differs least: 3e-4 at most, of a number."""
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = nn.GELU(approximate="tanh")


def pool_images(model: Any, tokenizer: Any) -> None:
    model.visual.pool_type = "avg"


def norm_images_later(model: Any, tokenizer: Any) -> None:
    model.visual.pool_type = "avg"
    model.visual.final_ln_after_pool = True


def fill_colour(model: Any, tokenizer: Any) -> None:
    model.visual.preprocess_cfg["fill_color"] = 255


CHANGES: list[Callable[[Any, Any], None]] = [
    *(exchange_words, clean_otherwise, truncate_at_the_left),
    *(pool_otherwise, more_heads, another_activation, another_epsilon),
    *(heads_of_images, activation_of_images, pool_images, norm_images_later, fill_colour),
]
SEEN_BEFORE = (fill_colour,)
"""By the first rule."""


def outputs(native: Native) -> list[Tensor]:
    """Ids and features of texts and pictures."""
    texts = ["a dog", "Two  dogs", "die Sonne", " ".join(["one", "two", "Meer"] * CONTEXT)]
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4
    ids = native.tokenize(texts)
    with torch.inference_mode():
        return [ids, native.encode_text(ids), native.encode_image(pixels)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_an_output_changes_the_fingerprint(
    build: Build, change: Callable[[Any, Any], None]
) -> None:
    before = Native("before", *build())
    model, tokenizer = build()
    change(model, tokenizer)
    after = Native("after", model, tokenizer)
    assert after.fingerprint != before.fingerprint
    assert (after.fingerprint_v1 != before.fingerprint_v1) == (change in SEEN_BEFORE)


def test_each_of_these_changes_does_change_an_output(build: Build) -> None:
    before = outputs(Native("before", *build()))
    for change in CHANGES:
        if change in (exchange_words, fill_colour):
            continue  # no text here has the two words; the pictures are prepared
        model, tokenizer = build()
        change(model, tokenizer)
        after = outputs(Native("after", model, tokenizer))
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert not all(same), change.__name__


def test_the_same_native_has_the_same_fingerprint_each_time(build: Build) -> None:
    first, second = Native("first", *build()), Native("second", *build())
    assert first.fingerprint == second.fingerprint != first.fingerprint_v1
    assert first.fingerprint_v1 == second.fingerprint_v1


def test_what_changes_no_output_changes_no_fingerprint(build: Build) -> None:
    before = Native("before", *build())
    model, tokenizer = build()

    class Gelu(nn.Module):
        """As a library may call it tomorrow."""

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.special.ndtr(x)

    for block in model.visual.transformer.resblocks:  # type: ignore[union-attr]
        block.mlp.gelu = Gelu()  # type: ignore[union-attr]
    model.visual.image_size = [32, 32]  # type: ignore[union-attr, assignment]
    model.visual.a_new_switch = False  # type: ignore[union-attr, assignment]
    model.half().float().train().requires_grad_(True)
    assert Native("after", model, tokenizer).fingerprint == before.fingerprint


# --- of one kind --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (open_clip.CLIP, {"pool_type": "argmax"}),
        (open_clip.CLIP, {"eos_id": 9}),
        (open_clip.CustomTextCLIP, {"no_causal_mask": True}),
        (open_clip.CustomTextCLIP, {"heads": 4}),
        (open_clip.CustomTextCLIP, {"norm_kwargs": {"eps": 1e-6}}),
        (open_clip.CustomTextCLIP, {"act_kwargs": {"approximate": "tanh"}}),
    ],
    ids=str,
)
def test_what_a_configuration_says_is_seen(
    build_model: BuildModel, tokenize: Any, kind: type[nn.Module], text: dict[str, Any]
) -> None:
    """Of models of the same weights."""
    natives = [Native("x", build_model(kind, **of), tokenize) for of in ({}, text)]
    assert natives[0].fingerprint_v1 == natives[1].fingerprint_v1
    assert natives[0].fingerprint != natives[1].fingerprint


def test_masked_padding_is_seen(build_model: BuildModel, tokenize: Any) -> None:
    models = [build_model(open_clip.CustomTextCLIP, no_causal_mask=True) for _ in range(2)]
    models[1].text.use_pad_mask = True  # type: ignore[union-attr, assignment]
    prints = {Native("x", model, tokenize).fingerprint for model in models}
    assert len(prints) == 2


def test_a_causal_mask_with_a_hole_is_seen(build_model: BuildModel, tokenize: Any) -> None:
    model = build_model()
    model.attn_mask[5, 2] = float("-inf")  # type: ignore[index]
    one = Native("x", build_model(), tokenize)
    assert Native("x", model, tokenize).fingerprint != one.fingerprint


def test_a_mended_configuration_in_a_folder_is_seen(native_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mended"
    shutil.copytree(native_folder, folder)
    before = Native.load(str(folder))
    config = folder / "open_clip_config.json"
    document = json.loads(config.read_text())
    document["model_cfg"]["quick_gelu"] = True
    config.write_text(json.dumps(document))
    after = Native.load(str(folder))
    assert after.fingerprint_v1 == before.fingerprint_v1
    assert after.fingerprint != before.fingerprint


def test_merges_are_part_of_a_tokenizer(build_model: BuildModel, tmp_path: Path) -> None:
    """Of open_clip's own, and of Hugging Face's: the vocabulary stays, the pairs go otherwise."""
    model = build_model(vocab_size=49408)
    one, other = SimpleTokenizer(), SimpleTokenizer()
    first, second = list(other.bpe_ranks)[30_000:30_002]
    other.bpe_ranks[first], other.bpe_ranks[second] = 30_001, 30_000
    prints = {Native("x", model, each).fingerprint for each in (one, other, SimpleTokenizer())}
    assert len(prints) == 2


def test_exchanged_words_of_open_clips_own_tokenizer_are_seen(build_model: BuildModel) -> None:
    model = build_model(vocab_size=49408)
    one, other = SimpleTokenizer(), SimpleTokenizer()
    words = other.encoder
    words["zebra</w>"], words["zeppelin</w>"] = words["zeppelin</w>"], words["zebra</w>"]
    assert Native("x", model, one).fingerprint != Native("x", model, other).fingerprint


def test_a_tokenizer_by_another_library_is_the_same(
    build_model: BuildModel, tmp_path: Path
) -> None:
    """CLIP's vocabulary from open_clip and from transformers, which name and pad otherwise."""
    ours = save_clip_tokenizer(tmp_path)
    theirs = HFTokenizer(str(tmp_path), context_length=CONTEXT)
    text = {"vocab_size": 49408, "pool_type": "argmax"}
    eos = {"vocab_size": 49408, "pool_type": "eos", "eos_id": 49407}
    prints = {
        Native("x", build_model(**of), tokenizer).fingerprint
        for of in (text, eos)
        for tokenizer in (ours, theirs)
    }
    assert len(prints) == 1


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},  # a ResNet of open_clip's
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"},
        {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
        {"timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": ""},
    ],
    ids=lambda vision: vision.get("timm_model_name", "resnet"),
)
def test_one_activation_of_an_image_tower_is_seen(
    build_model: BuildModel, vision: dict[str, Any]
) -> None:
    text = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1}
    prints = []
    for change in (False, True):
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(192, {"image_size": 64} | vision, text)
        open_clip.set_model_preprocess_cfg(model, asdict(PreprocessCfg()))
        if change:
            places = [
                (module, child)
                for module in model.visual.modules()
                for child, of in module.named_children()
                if type(of).__name__ in ("GELU", "ReLU")  # torch's, timm's
            ]
            setattr(*places[len(places) // 2], nn.SiLU())
        prints.append(Native("x", model, no_words))
    assert prints[0].fingerprint_v1 == prints[1].fingerprint_v1
    assert prints[0].fingerprint != prints[1].fingerprint


def no_words(texts: list[str], context_length: int) -> Tensor:
    return torch.full((len(texts), context_length), 2)
