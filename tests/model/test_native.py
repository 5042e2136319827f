"""Promises of mla_ray.model.native."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer
from mla_ray.model.towers import text_tower
from mla_ray.packs.card import make_card
from mla_ray.packs.mixed_batch import encode_mixed
from mla_ray.packs.pack import LanguagePack
from tests.support.natives import CONTEXT, VISION, BuildModel, MakePack, Train

EMOJI_CLIP = "cfc7c3b2ead2a77dc7d67a3868132a3793870409578e0e3ce30392c451500e13"
EMOJI_CLIP_V1 = "3957be81daab2cfa334e8c9e4b4c1d948a4182edaba359f01f16b0cda59b7cd1"
SENTENCES = [
    "a dog",
    "two small dogs play in deep snow behind the old house by the river",
    "x",
    "",
    "word " * 200,
]


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def vit_b_32(request: pytest.FixtureRequest) -> Iterator[Native]:
    """ViT-B/32; as a CustomTextCLIP its text tower beside a small image tower, to save time."""
    torch.manual_seed(0)
    if request.param == "CLIP":
        model = open_clip.create_model("ViT-B-32")
    else:
        text = open_clip.get_model_config("ViT-B-32")["text_cfg"]
        model = open_clip.CustomTextCLIP(embed_dim=512, vision_cfg=dict(VISION), text_cfg=text)
        open_clip.set_model_preprocess_cfg(model, asdict(PreprocessCfg()))
    assert type(model).__name__ == request.param
    yield Native("ViT-B-32", model, open_clip.get_tokenizer("ViT-B-32"))
    del model
    gc.collect()


@torch.inference_mode()
def cut_and_whole(native: Native, texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = native.tokenize(texts)
    longest = int(native.text.english_end(ids).max()) + 1
    assert longest < ids.shape[1]
    return native.encode_text(ids[:, :longest]), native.encode_text(ids)


@torch.inference_mode()
def test_vit_b_32_encodes_text_to_the_byte_as_open_clip_does(vit_b_32: Native) -> None:
    ids = vit_b_32.tokenize(SENTENCES)
    assert ids.shape == (5, 77)
    features = vit_b_32.encode_text(ids)
    assert features.shape == (5, 512) == (5, vit_b_32.dim)
    assert torch.equal(features, vit_b_32.model.encode_text(ids))


def test_vit_b_32_gives_the_same_features_when_a_batch_is_cut(vit_b_32: Native) -> None:
    cut, whole = cut_and_whole(vit_b_32, SENTENCES[:4])
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize(
    "text",
    [
        {"pool_type": "eos"},
        {"pool_type": "argmax"},
        {"pool_type": "first", "no_causal_mask": True},
        {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
        {"pool_type": "last"},
        {"pool_type": "eos", "proj_type": "none"},
        {"pool_type": "eos", "ls_init_value": 0.1, "qk_norm": True, "scale_heads": True},
    ],
    ids=lambda text: "-".join(f"{value}" for value in text.values()),
)
@torch.inference_mode()
def test_every_kind_of_tower_encodes_text_to_the_byte_as_open_clip_does(
    build_model: BuildModel,
    tokenize: Callable[..., Tensor],
    kind: type[nn.Module],
    text: dict[str, object],
) -> None:
    native = Native("tower", build_model(kind, **text), tokenize)
    ids = native.tokenize(SENTENCES)
    features = native.encode_text(ids)
    assert features.shape == (5, 32) == (5, native.dim)
    assert not torch.equal(features[0], features[1])  # it does look at the text
    assert torch.equal(features, native.model.encode_text(ids))


@torch.inference_mode()
def test_a_tower_that_masks_padding_encodes_text_to_the_byte_as_open_clip_does(
    build_model: BuildModel, tokenize: Callable[..., Tensor]
) -> None:
    model = build_model(open_clip.CustomTextCLIP, no_causal_mask=True)
    ids = tokenize(SENTENCES, context_length=24)
    unmasked = model.encode_text(ids)
    model.text.use_pad_mask = True
    expected = model.encode_text(ids)
    assert not torch.allclose(expected[0], unmasked[0])
    assert torch.equal(Native("masked", model, tokenize).encode_text(ids), expected)


def test_a_causal_tower_gives_the_same_features_when_a_batch_is_cut(
    native: Native, corpus: dict[str, list[str]]
) -> None:
    assert not native.text.fixed_length
    cut, whole = cut_and_whole(native, corpus["en"][:4])
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_bidirectional_tower_wants_the_whole_context(bidirectional: Native) -> None:
    assert bidirectional.text.causal_mask is None
    assert bidirectional.text.fixed_length
    ids = bidirectional.tokenize(["a dog", "cat"])
    padded_otherwise = torch.where(ids == 0, 5, ids)
    same = torch.allclose(
        bidirectional.encode_text(ids), bidirectional.encode_text(padded_otherwise)
    )
    assert not same  # padding belongs to the text: cutting it would change the feature


def test_a_causal_tower_pooled_at_its_last_position_wants_the_whole_context(
    build_model: BuildModel,
) -> None:
    assert text_tower(build_model(pool_type="last")).fixed_length


def test_the_end_of_a_text_is_the_tokenizers_where_the_tower_pools_elsewhere(
    build_model: BuildModel, tokenize: Callable[..., Tensor], corpus: dict[str, list[str]]
) -> None:
    # SigLIP's configuration leaves eos_id at 2, which is not its tokenizer's.
    text = {"pool_type": "last", "no_causal_mask": True, "eos_id": 7}
    native = Native("siglip", build_model(open_clip.CustomTextCLIP, **text), tokenize)
    ids = native.tokenize(corpus["en"])
    assert native.text.english_end(ids).tolist() == (ids == 2).int().argmax(dim=-1).tolist()
    assert len(set(native.text.english_end(ids).tolist())) > 2


def test_a_coca_tower_is_refused() -> None:
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
    model = open_clip.CoCa(
        embed_dim=16,
        multimodal_cfg=text,
        text_cfg=text | {"embed_cls": True, "output_tokens": True},
        vision_cfg=vision | {"attentional_pool": True, "attn_pooler_heads": 2},
    )
    with pytest.raises(TypeError, match="CoCa"):
        text_tower(model)


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def bert_kind(
    request: pytest.FixtureRequest, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a small configuration of a kind of BERT, and the tokenizer of `bert_folder`."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(bert_folder, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(bert_folder).to_dict() | {"num_hidden_layers": 3}
    del config["model_type"]
    AutoConfig.for_model(request.param, **config).save_pretrained(folder)
    return folder


def bert_native(
    build_model: BuildModel, folder: Path, pooler: str = "mean_pooler", proj: str = "mlp"
) -> Native:
    model = build_model(
        open_clip.CustomTextCLIP,
        hf_model_name=str(folder),
        hf_model_pretrained=False,
        hf_pooler_type=pooler,
        hf_proj_type=proj,
    )
    with torch.no_grad():  # biases and norms too, so that nothing of the path is zero or one
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return Native("bert", model, HFTokenizer(str(folder), context_length=CONTEXT))


@pytest.mark.parametrize(
    ("pooler", "proj"),
    [("mean_pooler", "mlp"), ("cls_pooler", "linear"), ("cls_last_hidden_state_pooler", "mlp")],
)
@torch.inference_mode()
def test_every_kind_of_bert_encodes_text_to_the_byte_as_open_clip_does(
    build_model: BuildModel, bert_kind: Path, corpus: dict[str, list[str]], pooler: str, proj: str
) -> None:
    native = bert_native(build_model, bert_kind, pooler, proj)
    ids = native.tokenize(corpus["de"])
    assert ids.shape == (6, CONTEXT) == (6, native.text.context_length)
    assert (ids == native.text.pad_id).any()
    features = native.encode_text(ids)
    assert features.shape == (6, 32) == (6, native.dim)
    assert torch.pdist(features).min() > 1e-3
    assert torch.equal(features, native.model.encode_text(ids))
    full = torch.randint(1, 5, (2, CONTEXT)) * 2  # no padding: transformers takes no mask then
    assert torch.equal(native.encode_text(full), native.model.encode_text(full))


def test_a_bert_gives_the_same_features_when_a_batch_is_cut(
    build_model: BuildModel, bert_kind: Path, corpus: dict[str, list[str]]
) -> None:
    native = bert_native(build_model, bert_kind)
    assert not native.text.fixed_length
    cut, whole = cut_and_whole(native, corpus["de"][:4])
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_bert_skips_padding_within_a_text_as_open_clip_does(
    build_model: BuildModel, bert_kind: Path, corpus: dict[str, list[str]]
) -> None:
    native = bert_native(build_model, bert_kind)
    ids = native.tokenize(corpus["de"][1:2])
    before = native.encode_text(ids)
    end = int(native.text.english_end(ids))
    ids[0, 2] = native.text.pad_id
    assert int(native.text.english_end(ids)) == end
    assert not torch.allclose(native.encode_text(ids), before)
    assert torch.equal(native.encode_text(ids), native.model.encode_text(ids))


def test_positions_of_a_roberta_begin_after_its_padding(
    build_model: BuildModel, bert_kind: Path
) -> None:
    model = bert_native(build_model, bert_kind).model
    taken = 0 if bert_kind.name.startswith("bert") else 1 + model.text.config.pad_token_id
    assert text_tower(model).context_length == 64 - taken  # 77 would be open_clip's
    assert text_tower(model, 24).context_length == 24


def test_training_on_a_bert_moves_the_language_and_not_english(
    build_model: BuildModel, bert_kind: Path, corpus: dict[str, list[str]], train: Train
) -> None:
    native = bert_native(build_model, bert_kind)
    ids = native.tokenize(corpus["de"])
    lengths = native.text.english_end(ids) + 1
    weights = {name: weight.clone() for name, weight in native.model.state_dict().items()}
    english = native.encode_text(ids)
    rows = native.text.token_embedding.weight
    encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), hidden=8)
    with torch.inference_mode():
        assert torch.equal(encoder(ids, lengths), english)
    target = torch.randn(len(ids), native.dim, generator=torch.Generator().manual_seed(9))
    before = (encoder(ids, lengths) - target).square().mean().item()
    train(encoder, ids, lengths, 30)
    assert (encoder(ids, lengths) - target).square().mean().item() < 0.8 * before
    assert torch.equal(native.encode_text(ids), english)
    for name, weight in native.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_pack_on_a_bert_says_the_same_alone_mixed_and_after_loading(
    build_model: BuildModel,
    bert_kind: Path,
    corpus: dict[str, list[str]],
    make_pack: MakePack,
    tmp_path: Path,
) -> None:
    native = bert_native(build_model, bert_kind)
    tokenizer = make_pack("de").tokenizer
    rows = learned_rows(len(tokenizer.tokens), native.text, torch.Generator().manual_seed(0))
    encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), hidden=8)
    assert len(encoder.acquirers) == 3
    pack = LanguagePack(
        make_card(native, "de", encoder),
        encoder,
        LanguageTokenizer(tokenizer.tokenizer, tokenizer.tokens, CONTEXT),
    )
    fresh = pack.encode_text(corpus["de"])
    with torch.no_grad():
        for weight in encoder.acquirers.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    features = pack.encode_text(corpus["de"])
    assert not torch.allclose(features, fresh, atol=1e-3)
    alone = torch.cat([pack.encode_text([text]) for text in corpus["de"]])
    torch.testing.assert_close(alone, features, atol=1e-5, rtol=0)

    pack.save(tmp_path / "de")
    loaded = LanguagePack.load(tmp_path / "de", native)
    assert torch.equal(loaded.encode_text(corpus["de"]), features)

    english = native.encode_text(native.tokenize(corpus["de"][:2]))
    texts = [(corpus["de"][0], None), *((text, pack) for text in corpus["de"])]
    mixed = encode_mixed(native, [*texts, (corpus["de"][1], None)])
    torch.testing.assert_close(mixed[1:-1], features, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[[0, -1]], english, atol=1e-5, rtol=0)


def test_another_transformers_tower_is_refused_by_its_name(
    build_model: BuildModel, tmp_path: Path
) -> None:
    from transformers import MT5Config

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    MT5Config(vocab_size=50, **sizes).save_pretrained(tmp_path)
    model = build_model(
        open_clip.CustomTextCLIP, hf_model_name=str(tmp_path), hf_model_pretrained=False
    )
    with pytest.raises(TypeError, match="'mt5' is not supported; those of bert, roberta, xlm"):
        text_tower(model)


def test_pooling_by_maximum_is_refused(build_model: BuildModel, bert_folder: Path) -> None:
    with pytest.raises(TypeError, match="MaxPooler"):
        bert_native(build_model, bert_folder, pooler="max_pooler")


def test_pooling_over_all_positions_is_refused(build_model: BuildModel) -> None:
    with pytest.raises(TypeError, match="'none'"):
        text_tower(build_model(open_clip.CustomTextCLIP, pool_type="none"))


@pytest.mark.parametrize("name", ["emoji-klip", "ViT-B-32/nobody", "/no/such/folder", "ViT-B-32"])
def test_an_unknown_name_is_refused_and_the_ways_are_listed(name: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        Native.load(name)
    message = str(error.value)
    assert repr(name) in message
    for way in ("bundled", "open_clip_config.json", "hf-hub:", "ViT-B-32/openai"):
        assert way in message


def test_a_folder_loads_and_encodes_as_the_model_that_was_saved(
    native_folder: Path, native: Native, corpus: dict[str, list[str]]
) -> None:
    loaded = Native.load(str(native_folder))
    assert torch.equal(loaded.tokenize(corpus["en"]), native.tokenize(corpus["en"]))
    ids, pixels = native.tokenize(corpus["en"]), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode_text(ids), native.encode_text(ids))
    assert torch.equal(loaded.encode_image(pixels), native.encode_image(pixels))
    assert loaded.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_a_folder_with_pickled_weights_only_is_refused(
    native_folder: Path, native: Native, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(native_folder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(native.model.state_dict(), folder / "open_clip_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickled: no \*\.safetensors"):
        Native.load(str(folder))


def test_the_bundled_native_has_the_fingerprints_that_packs_were_made_for() -> None:
    """On every machine and with every release of the libraries: packs are known by it."""
    native = Native.load("emoji-clip")
    assert (native.fingerprint, native.fingerprint_v1) == (EMOJI_CLIP, EMOJI_CLIP_V1)
    assert EMOJI_CLIP != EMOJI_CLIP_V1


def test_a_folder_in_which_a_pickle_would_come_first_is_refused(
    native_folder: Path, native: Native, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(native_folder, folder)
    pickle = folder / "open_clip_pytorch_model.bin"
    torch.save(native.model.state_dict(), pickle)
    assert Native.load(str(folder)).fingerprint == native.fingerprint  # open_clip's name is first
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"open_clip_pytorch_model.bin would be loaded"):
        Native.load(str(folder))
    pickle.unlink()
    assert Native.load(str(folder)).fingerprint == native.fingerprint


def test_a_float16_file_of_the_same_weights_has_the_same_fingerprint(
    native_folder: Path, native: Native
) -> None:
    assert Native.load(str(native_folder)).fingerprint == native.fingerprint
    assert len(native.fingerprint) == 64


@pytest.mark.parametrize("tower", ["token_embedding.weight", "visual.conv1.weight", "logit_scale"])
def test_one_changed_weight_changes_the_fingerprint(
    build_model: BuildModel, tokenize: Callable[..., Tensor], native: Native, tower: str
) -> None:
    model = build_model()
    assert Native("same", model, tokenize).fingerprint == native.fingerprint
    model.state_dict()[tower].view(-1)[-1] += 2**-8
    assert Native("changed", model, tokenize).fingerprint != native.fingerprint


def test_another_preprocessing_changes_the_fingerprint(
    native_folder: Path, native: Native, tmp_path: Path
) -> None:
    folder = tmp_path / "cropping"
    shutil.copytree(native_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "shortest"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert Native.load(str(folder)).fingerprint != native.fingerprint


def test_a_native_is_frozen(build_model: BuildModel, tokenize: Callable[..., Tensor]) -> None:
    model = build_model().train()
    native = Native("frozen", model, tokenize)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert not [module for module in model.modules() if module.training]
    assert not native.encode_text(native.tokenize(["a dog"])).requires_grad


@pytest.mark.parametrize("name", ["emoji-clip", "ViT-B-32"])
def test_a_string_is_one_text_and_no_texts_are_no_features(
    name: str, build_model: BuildModel
) -> None:
    """With transformers' tokenizer and with open_clip's own."""
    if name == "emoji-clip":
        native = Native.load(name)
    else:
        model = build_model(vocab_size=49408)
        native = Native("tiny", model, open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT))
    expected = native.encode_text(native.tokenize(["a dog"]))
    for given in ("a dog", ["a dog"], native.tokenize("a dog")):
        assert torch.equal(native.encode_text(given), expected)
    for nothing in ([], native.tokenize([])):
        assert native.encode_text(nothing).shape == (0, native.dim)
    assert native.tokenize([]).shape == (0, native.text.context_length)
    assert native.tokenize([]).dtype == torch.int64
    assert native.unknown_tokens([]).shape == (0,)
    for call in (native.encode_text, native.tokenize, native.unknown_tokens):
        with pytest.raises(ValueError, match=r"texts\[1\] .*U\+D800\) at position 2"):
            call(["a dog", "a \ud800"])
