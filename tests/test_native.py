"""Promises of mla_ray.native."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import VISION, BuildModel
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from mla_ray.native import Native, TextTower

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
    assert TextTower(build_model(pool_type="last")).fixed_length


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
        TextTower(model)


def test_a_hugging_face_tower_is_refused_by_its_name(
    build_model: BuildModel, bert_folder: Path
) -> None:
    model = build_model(
        open_clip.CustomTextCLIP, hf_model_name=str(bert_folder), hf_model_pretrained=False
    )
    with pytest.raises(TypeError, match="HFTextEncoder is not supported"):
        TextTower(model)


def test_pooling_over_all_positions_is_refused(
    build_model: BuildModel, tokenize: Callable[..., Tensor]
) -> None:
    model = build_model(open_clip.CustomTextCLIP, pool_type="none")
    with pytest.raises(TypeError, match="'none'"):
        Native("all positions", model, tokenize).encode_text(tokenize(["a dog"], context_length=24))


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
