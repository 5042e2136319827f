"""Natives by the names that a hub knows, out of a hub's cache on disk: no network.

The weights are random, the names, files and settings those that open_clip asks for.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from mla_ray.model.native import Native
from mla_ray.model.towers import BertTower
from tests.support.logs import logged

Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Makes the folder of a repository in a cache that is all there is to be had."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(repository: str, *missing: str) -> Path:
        home = tmp_path / f"models--{repository.replace('/', '--')}"
        commit = "0" * 40
        (home / "refs").mkdir(parents=True)
        (home / "refs/main").write_text(commit)
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for name in missing:  # files that the hub is known not to have
            (home / ".no_exist" / commit).mkdir(parents=True, exist_ok=True)
            (home / ".no_exist" / commit / name).touch()
        return snapshot

    return make


def test_a_hub_name_is_the_folder_it_was_made_from(
    publish: Publish, native_folder: Path, native: Native, corpus: dict[str, list[str]]
) -> None:
    folder = publish("somebody/tiny-clip", "config.json")
    shutil.copytree(native_folder, folder, dirs_exist_ok=True)
    config = folder / "open_clip_config.json"  # names where the tokenizer is, unlike a folder's
    config.write_text(config.read_text().replace("in this folder", "somebody/tiny-clip"))
    (publish("somebody/no-clip") / "config.json").write_text("{}")
    loaded = Native.load("hf-hub:somebody/tiny-clip")
    assert loaded.name == "hf-hub:somebody/tiny-clip"
    assert loaded.fingerprint == native.fingerprint
    ids = loaded.tokenize(corpus["en"])
    assert torch.equal(ids, native.tokenize(corpus["en"]))
    assert torch.equal(loaded.encode_text(ids), native.encode_text(ids))
    for name in ("hf-hub:somebody/no-clip", "hf-hub:nobody/nothing", "ViT-B-32/openai"):
        with pytest.raises(FileNotFoundError, match="cannot be fetched") as error:
            Native.load(name)
        assert repr(name) in str(error.value)
        assert "pass its folder" in str(error.value)


def save_weights(model: nn.Module, folder: Path) -> None:
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


@pytest.mark.slow
def test_openais_clip_has_its_own_gelu(publish: Publish) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    save_weights(model, publish("timm/vit_base_patch32_clip_224.openai"))
    native = Native.load("ViT-B-32/openai")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    assert native.fingerprint == Native("same", model, tokenizer).fingerprint
    ids = native.tokenize(["a dog", "two dogs play in the snow"])
    with torch.inference_mode():
        features = native.encode_text(ids)
        assert torch.equal(features, model.encode_text(ids))
        pixels = torch.randn(1, 3, 224, 224)
        assert torch.equal(native.encode_image(pixels), model.encode_image(pixels))
        gelu = open_clip.create_model("ViT-B-32").eval()
        gelu.load_state_dict(model.state_dict())
        assert not torch.allclose(features, gelu.encode_text(ids), atol=1e-3)


@pytest.mark.slow
def test_siglip_by_name(publish: Publish, english_tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-SigLIP").eval()
    folder = publish("timm/ViT-B-16-SigLIP", "config.json")
    save_weights(model, folder)
    english_tokenizer.save_pretrained(folder)
    native = Native.load("ViT-B-16-SigLIP/webli")
    assert native.model.visual.preprocess_cfg["resize_mode"] == "squash"
    assert native.model.visual.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)
    ids = native.tokenize(["A dog!", "cat"])
    assert ids.shape == (2, 64)
    assert torch.equal(ids[:1], native.tokenize(["a dog"]))  # open_clip canonicalizes
    ends = native.text.english_end(ids)
    assert (ids[[0, 1], ends] == english_tokenizer.eos_token_id).all()
    with torch.inference_mode():
        assert torch.equal(native.encode_text(ids), model.encode_text(ids))


@pytest.mark.slow
def test_a_roberta_by_name(publish: Publish, english_tokenizer: PreTrainedTokenizerFast) -> None:
    from transformers import RobertaConfig

    torch.manual_seed(0)
    base = publish("roberta-base")
    # As roberta-base has it, but for the ids of a tokenizer made here.
    RobertaConfig(
        vocab_size=50_265,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=english_tokenizer.pad_token_id,
    ).save_pretrained(base)
    english_tokenizer.save_pretrained(base)
    model = open_clip.create_model("roberta-ViT-B-32", pretrained_text=False).eval()
    save_weights(model, publish("laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k"))
    native = Native.load("roberta-ViT-B-32/laion2b_s12b_b32k")
    assert isinstance(native.text, BertTower)
    assert native.text.context_length == 77
    ids = native.tokenize(["a dog", "two dogs play in the snow"])
    assert ids.shape == (2, 77)
    with torch.inference_mode():
        assert torch.equal(native.encode_text(ids), model.encode_text(ids))


def test_offline_a_native_that_is_not_in_the_cache_is_told_once_and_why(publish: Publish) -> None:
    with logged("", logging.NOTSET) as told:
        for name in ("ViT-B-32/openai", "hf-hub:nobody/none"):
            with pytest.raises(FileNotFoundError, match=f"{name}.*HF_HUB_OFFLINE is set"):
                Native.load(name)
    assert told == []
