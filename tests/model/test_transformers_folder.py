"""Promises of transformers_folder: folders that transformers wrote say what transformers says."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import merge_preprocess_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from mla_ray.model.native import Native
from tests.support.natives import CONTEXT, BuildModel, save_clip_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 16,
}
WriteClip = Callable[..., nn.Module]


def save(model: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """Biases and norms are random too, so that no weight may be taken for another."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval().save_pretrained(folder, **options)
    return model


@pytest.fixture
def write_clip(tmp_path: Path, english_tokenizer: PreTrainedTokenizerFast) -> WriteClip:
    """A small CLIPModel with all that `from_pretrained` needs, in `tmp_path`."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    def write(
        text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **options: Any
    ) -> nn.Module:
        torch.manual_seed(0)
        sizes = TEXT | {"vocab_size": len(english_tokenizer), "eos_token_id": 2}
        config = CLIPConfig(
            text_config=sizes | (text or {}),
            vision_config=VISION | (vision or {}),
            projection_dim=24,
        )
        english_tokenizer.save_pretrained(tmp_path)
        size = {"height": 32, "width": 32}
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path)
        return save(CLIPModel(config), tmp_path, **options)

    return write


@torch.inference_mode()
def distances(native: Native, theirs: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Greatest difference of text and image features, as a part of the features' length."""
    height, width = native.model.visual.image_size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = []
    for ours, wanted in (
        (native.encode_text(ids), theirs.get_text_features(input_ids=ids)),
        (native.encode_image(pixels), theirs.get_image_features(pixel_values=pixels)),
    ):
        wanted = wanted.pooler_output
        assert ours.shape == wanted.shape
        assert torch.pdist(wanted).min() > 0.05 * wanted.norm(dim=-1).max()
        found.append(float((ours - wanted).norm(dim=-1).max() / wanted.norm(dim=-1).min()))
    return found[0], found[1]


# Both sum in float32, in another order: query, key and value as one product or as three.
CLOSE = 1e-5


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new"])
def test_a_clip_of_transformers_says_the_same(
    write_clip: WriteClip, tmp_path: Path, corpus: dict[str, list[str]], act: str
) -> None:
    theirs = write_clip({"hidden_act": act}, {"hidden_act": act})
    native = Native.load(str(tmp_path))
    ids = native.tokenize(corpus["en"])
    assert ids.shape == (6, CONTEXT)
    assert max(distances(native, theirs, ids)) < CLOSE
    assert native.dim == 24
    assert native.logit_scale == pytest.approx(theirs.logit_scale.exp().item())


def test_activations_do_differ(write_clip: WriteClip, tmp_path: Path) -> None:
    theirs = write_clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"})
    config = json.loads((tmp_path / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    native = Native.load(str(tmp_path))
    assert min(distances(native, theirs, native.tokenize(["a dog", "cat"]))) > 100 * CLOSE


def test_the_end_of_a_text_is_where_transformers_reads_it(
    write_clip: WriteClip, tmp_path: Path
) -> None:
    theirs = write_clip({"eos_token_id": 2})  # read as: the highest id
    ids = torch.tensor([[1, 9, 200, 7, 2, 0], [1, 210, 5, 2, 2, 0]])
    native = Native.load(str(tmp_path))
    assert native.text.english_end(ids).tolist() == [2, 1]
    assert distances(native, theirs, _whole(ids))[0] < CLOSE

    theirs = write_clip({"eos_token_id": 7})  # the first of these
    ids = torch.tensor([[1, 9, 200, 7, 2, 0], [1, 210, 7, 2, 7, 0]])
    native = Native.load(str(tmp_path))
    assert native.text.english_end(ids).tolist() == [3, 2]
    assert distances(native, theirs, _whole(ids))[0] < CLOSE


def _whole(ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(ids, (0, CONTEXT - ids.shape[1]))


def test_float16_and_sharded_weights_are_read(
    write_clip: WriteClip, tmp_path: Path, corpus: dict[str, list[str]]
) -> None:
    theirs = write_clip()
    whole = load_file(tmp_path / "model.safetensors")
    theirs.half().float()
    save_file({name: w.half() for name, w in whole.items()}, tmp_path / "model.safetensors")
    native = Native.load(str(tmp_path))
    assert max(distances(native, theirs, native.tokenize(corpus["en"]))) < CLOSE

    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert Native.load(str(tmp_path)).fingerprint == native.fingerprint


def test_images_are_prepared_as_transformers_does(write_clip: WriteClip, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil

    write_clip()
    native = Native.load(str(tmp_path))
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for height, width in ((40, 60), (100, 32), (32, 32), (20, 24)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        wanted = torch.as_tensor(theirs(images=image, return_tensors="pt")["pixel_values"][0])
        torch.testing.assert_close(native.preprocess(image), wanted, atol=1e-5, rtol=0)


def test_clips_own_vocabulary_gives_the_ids_of_open_clip(
    write_clip: WriteClip, tmp_path: Path
) -> None:
    write_clip({"vocab_size": 49_408, "eos_token_id": 49_407})
    theirs = save_clip_tokenizer(tmp_path)
    native = Native.load(str(tmp_path))
    texts = ["a dog", "", "Two  DOGS' puppies; it's 2024!", "café naïve 犬 &amp; 🐶", "word " * 99]
    ids, wanted = native.tokenize(texts), theirs(texts, context_length=CONTEXT)
    ends = native.text.english_end(ids)
    assert torch.equal(ends, wanted.argmax(dim=-1))
    for row, end in enumerate(ends.tolist()):  # then transformers pads with the end, open_clip 0
        assert ids[row, : end + 1].tolist() == wanted[row, : end + 1].tolist()


@pytest.fixture(scope="module")
def siglip(
    tmp_path_factory: pytest.TempPathFactory, english_tokenizer: PreTrainedTokenizerFast
) -> tuple[Path, Any]:
    """A folder with a SiglipModel: the image tower of B/32 beside a small text tower."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": len(english_tokenizer), "projection_size": 768}
    vision = {"image_size": 256, "patch_size": 32}
    english_tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 256, "width": 256}).save_pretrained(folder)
    config = SiglipConfig(text_config=text, vision_config=vision)
    return folder, save(SiglipModel(config), folder)


def test_a_siglip_of_transformers_says_the_same(
    siglip: tuple[Path, Any], corpus: dict[str, list[str]]
) -> None:
    folder, theirs = siglip
    native = Native.load(str(folder))
    assert native.text.fixed_length
    ids = native.tokenize(corpus["en"])
    assert max(distances(native, theirs, ids)) < CLOSE
    assert native.dim == 768
    assert native.model.logit_bias.item() == theirs.logit_bias.item()
    assert native.model.visual.preprocess_cfg["resize_mode"] == "squash"
    assert native.model.visual.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)


def test_siglips_own_kind_of_tokenizer_is_read(
    siglip: tuple[Path, Any], tmp_path: Path, corpus: dict[str, list[str]]
) -> None:
    """As Google publishes it: a SentencePiece model, texts lower-cased and without punctuation."""
    import sentencepiece
    from transformers import SiglipTokenizer

    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(siglip[0] / name)
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus["en"] * 20),
        model_writer=model,
        vocab_size=36,
        bos_id=-1,
        pad_id=-1,
        unk_id=2,
        eos_id=1,
        user_defined_symbols=["<extra>"],
        minloglevel=2,
        num_threads=1,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    theirs = SiglipTokenizer(str(tmp_path / "spiece.model"), do_lower_case=True)
    theirs.save_pretrained(tmp_path)
    native = Native.load(str(tmp_path))
    texts = ["A red umbrella!", "two dogs' play", "cat", "the sun rises " * 20]
    ids = native.tokenize(texts)
    wanted = theirs(
        texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    assert torch.equal(ids, wanted["input_ids"])
    assert theirs.eos_token_id == theirs.pad_token_id == 1  # the first ends, the rest pad
    lengths = [len(theirs(text).input_ids) for text in texts[:3]]
    assert native.text.english_end(ids).tolist() == [n - 1 for n in lengths] + [CONTEXT - 1]


def test_an_image_tower_that_timm_has_not_is_refused(
    siglip: tuple[Path, Any], tmp_path: Path
) -> None:
    shutil.copy(siglip[0] / "config.json", tmp_path)
    _edit(tmp_path, "config.json", "vision_config", patch_size=20)
    with pytest.raises(ValueError, match=r"config\.json: no image tower vit_base_patch20_siglip"):
        Native.load(str(tmp_path))


def _edit(folder: Path, name: str, section: str | None = None, **values: Any) -> None:
    document = json.loads((folder / name).read_text())
    (document[section] if section else document).update(values)
    (folder / name).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "section", "values", "message"),
    [
        ("config.json", None, {"model_type": "siglip2"}, "'siglip2' is not supported; clip, sig"),
        ("config.json", "text_config", {"hidden_act": "gelu"}, "'gelu' for text and 'quick_gelu'"),
        ("config.json", "text_config", {"num_hidden_layers": 2}, "not what config.json says"),
        ("config.json", "vision_config", {"patch_size": 8}, "not what config.json says"),
        ("preprocessor_config.json", None, {"size": {"shortest_edge": 40}}, "resizes to"),
        ("preprocessor_config.json", None, {"do_center_crop": False}, "crops to None"),
        ("preprocessor_config.json", None, {"do_normalize": False}, "and normalise"),
        ("preprocessor_config.json", None, {"rescale_factor": 1.0}, "scale by 1/255"),
        ("preprocessor_config.json", None, {"resample": 0}, "bilinear or bicubic"),
    ],
)
def test_what_open_clip_has_not_is_refused(
    write_clip: WriteClip,
    tmp_path: Path,
    file: str,
    section: str | None,
    values: dict[str, Any],
    message: str,
) -> None:
    write_clip()
    _edit(tmp_path, file, section, **values)
    with pytest.raises(ValueError, match=message) as error:
        Native.load(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_damaged_files_are_refused_by_name(write_clip: WriteClip, tmp_path: Path) -> None:
    write_clip({"hidden_act": "relu"}, {"hidden_act": "relu"})
    with pytest.raises(ValueError, match=r"'relu' is not supported; quick_gelu, gelu"):
        Native.load(str(tmp_path))
    write_clip()
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        Native.load(str(tmp_path))
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors; pickled weights"):
        Native.load(str(tmp_path))
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: not a configuration"):
            Native.load(str(tmp_path))
    (tmp_path / "config.json").write_text(" " * (1 << 21))
    with pytest.raises(ValueError, match=r"config\.json: larger than"):
        Native.load(str(tmp_path))


def test_an_open_clip_folder_brings_the_configuration_of_its_bert(
    build_model: BuildModel, bert_folder: Path, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    model = build_model(
        open_clip.CustomTextCLIP, hf_model_name=str(bert_folder), hf_model_pretrained=False
    )
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()  # BERT's own
    text = {"hf_model_name": "nobody/on-no-hub", "hf_tokenizer_name": "nobody/on-no-hub"}
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    document = {
        "model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    loaded = Native.load(str(tmp_path))
    wanted = Native("made here", model, HFTokenizer(str(bert_folder)))
    assert loaded.fingerprint == wanted.fingerprint
    assert loaded.text.context_length == 64 == wanted.text.context_length
    ids = loaded.tokenize(corpus["de"])
    with torch.inference_mode():
        assert torch.equal(loaded.encode_text(ids), wanted.encode_text(ids))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ValueError, match=r"open_clip_config.json: not a configuration"):
        Native.load(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["ViT-B-32-quickgelu", "ViT-L-14-quickgelu"])
def test_a_whole_clip_of_transformers_is_open_clips(
    size: str, english_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """In features, and in the fingerprint: packs made for one serve the other."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text, vision = {"eos_token_id": 49_407}, {}
    dim = 512
    if size == "ViT-L-14-quickgelu":
        dim = 768
        text |= {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        vision = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        }
    tokenizer = save_clip_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    CLIPImageProcessor().save_pretrained(tmp_path)
    native = Native.load(str(tmp_path))
    ids = torch.randint(0, 49_406, (3, 77), generator=torch.Generator().manual_seed(0))
    ids[[0, 1, 2], [5, 30, 76]] = 49_407
    text_distance, image_distance = distances(native, theirs, ids)
    print(f"{size}: text {text_distance:.1e}, image {image_distance:.1e} of the length")
    assert max(text_distance, image_distance) < CLOSE

    ours = open_clip.create_model(size)
    ours.load_state_dict(native.model.state_dict())
    in_open_clip = Native(size, ours, tokenizer)
    assert in_open_clip.fingerprint == native.fingerprint
    english_tokenizer.save_pretrained(tmp_path / "another")
    another = HFTokenizer(str(tmp_path / "another"), context_length=77)
    with_another_tokenizer = Native(size, ours, another)
    assert with_another_tokenizer.fingerprint_v1 == native.fingerprint_v1
    assert with_another_tokenizer.fingerprint != native.fingerprint
    with torch.inference_mode():
        assert torch.equal(ours.encode_text(ids), native.encode_text(ids))


@pytest.mark.slow
def test_a_whole_siglip_of_transformers_is_open_clips(
    english_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """SigLIP B/16, all of it. open_clip's has another GELU, and is another native."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    theirs = SiglipModel(SiglipConfig()).eval()
    theirs.save_pretrained(tmp_path)
    english_tokenizer.save_pretrained(tmp_path)
    SiglipImageProcessor().save_pretrained(tmp_path)
    native = Native.load(str(tmp_path))
    ids = torch.randint(0, 32_000, (3, 64), generator=torch.Generator().manual_seed(0))
    text_distance, image_distance = distances(native, theirs, ids)
    print(f"SigLIP B/16: text {text_distance:.1e}, image {image_distance:.1e} of the length")
    assert max(text_distance, image_distance) < CLOSE

    ours = open_clip.create_model("ViT-B-16-SigLIP")
    ours.load_state_dict(native.model.state_dict())
    tag = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", "webli")
    preprocessing = merge_preprocess_dict(ours.visual.preprocess_cfg, tag)
    open_clip.set_model_preprocess_cfg(ours, preprocessing)
    theirs_in_open_clip = Native("ViT-B-16-SigLIP", ours, HFTokenizer(str(tmp_path)))
    assert theirs_in_open_clip.fingerprint_v1 == native.fingerprint_v1
    assert theirs_in_open_clip.fingerprint != native.fingerprint
    text_distance, image_distance = distances(theirs_in_open_clip, theirs, ids)
    print(f"by its GELU: text {text_distance:.1e}, image {image_distance:.1e}")
    assert CLOSE < max(text_distance, image_distance) < 0.02
