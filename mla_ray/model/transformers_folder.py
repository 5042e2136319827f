"""Natives from transformers folders: `CLIPModel` and `SiglipModel` as open_clip models.

Weights are renamed and regrouped, but not recomputed. Therefore a model has the same fingerprint in
both layouts. Only safetensors are read.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mla_ray.model.open_clip_config import ModelConfig, Preprocessing, preprocessing

MAX_CONFIG_BYTES = 1 << 20
"""Maximum size of `config.json` in bytes."""
DUAL_ENCODERS = ("clip", "siglip")
"""`model_type` values of the configurations that `load_folder` supports."""

Names = dict[str, str]
"""Parts of weight names in transformers, and their names in open_clip or timm."""
TEXT: Names = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "head.": "text_projection.",  # SigLIP's only
}
CLIP_VISION: Names = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
}
OPEN_CLIP_BLOCK: Names = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
SIGLIP_VISION: Names = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "encoder.layers": "blocks",
    "post_layernorm": "norm",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp": "attn_pool.mlp",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
}
SIGLIP_SIZES = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}
"""timm's name of SigLIP's image tower by width."""
ACTIVATIONS: dict[str, dict[str, str]] = {
    "quick_gelu": {},
    "gelu": {},
    "gelu_pytorch_tanh": {"approximate": "tanh"},
    "gelu_new": {"approximate": "tanh"},
}
"""Arguments of `torch.nn.GELU` by `hidden_act`. QuickGELU is a class of its own."""
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""open_clip's names of Pillow's resampling filters."""


def model_type(folder: Path) -> str | None:
    """Return the `model_type` in a folder's `config.json`, or None without such a file.

    Raises:
        ValueError: The file is too large or is not a JSON object.

    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a configuration: {error}") from error
    return str(kind)


def load_folder(folder: Path) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Load a folder whose `model_type` is in `DUAL_ENCODERS`.

    Returns:
        The open_clip model and its tokenizer.

    Raises:
        FileNotFoundError: The folder has no safetensors weights.
        ValueError: open_clip does not support a size, activation or preprocessing of the model, or
            the weights do not fit `config.json`. The message names the folder or file.

    """
    # The import takes half a second, and only such folders need it.
    from transformers import AutoConfig, CLIPImageProcessor, SiglipImageProcessor

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    siglip = config.model_type == "siglip"
    model = (_siglip if siglip else _clip)(folder, config)
    weights = _read(folder)
    try:
        model.load_state_dict(_siglip_weights(weights) if siglip else _clip_weights(weights))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{folder}: weights are not what config.json says: {error}") from error
    processor = SiglipImageProcessor if siglip else CLIPImageProcessor
    settings = processor.from_pretrained(str(folder), local_files_only=True).to_dict()
    open_clip.set_model_preprocess_cfg(
        model, _preprocessing(folder, settings, model.visual.image_size)
    )
    tokenizer = HFTokenizer(
        str(folder),
        context_length=config.text_config.max_position_embeddings,
        clean="canonicalize" if siglip else "whitespace",  # open_clip's choice for each
    )
    return model, tokenizer


def _clip(folder: Path, config: Any) -> Any:
    text, vision = config.text_config, config.vision_config
    if text.hidden_act != vision.hidden_act:
        raise ValueError(
            f"{folder}/config.json: hidden_act is {text.hidden_act!r} for text and "
            f"{vision.hidden_act!r} for images; open_clip's CLIP supports only one for both"
        )
    # Before 2023 transformers always wrote 2, whatever the tokenizer's id was. It still reads 2 as
    # CLIP's own rule: the end token has the highest id.
    legacy = text.eos_token_id == 2
    return open_clip.CLIP(
        embed_dim=config.projection_dim,
        quick_gelu=text.hidden_act == "quick_gelu",
        vision_cfg=_sizes(folder, vision)
        | {
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        },
        text_cfg=_text(folder, text)
        | {"pool_type": "argmax" if legacy else "eos", "eos_id": text.eos_token_id},
    )


def _siglip(folder: Path, config: Any) -> Any:
    text, vision = config.text_config, config.vision_config
    name = (
        f"vit_{SIGLIP_SIZES.get(vision.hidden_size, vision.hidden_size)}"
        f"_patch{vision.patch_size}_siglip_{vision.image_size}"
    )
    if "quick_gelu" in (text.hidden_act, vision.hidden_act):
        raise ValueError(f"{folder}/config.json: hidden_act quick_gelu is CLIP's, not SigLIP's")
    try:
        model = open_clip.CustomTextCLIP(
            embed_dim=text.projection_size,
            init_logit_bias=0.0,
            vision_cfg={
                "timm_model_name": name,
                "timm_pool": "map",
                "timm_proj": "none",
                "image_size": vision.image_size,
            },
            text_cfg=_text(folder, text)
            | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        )
    except RuntimeError as error:  # timm raises it for an unknown name
        raise ValueError(f"{folder}/config.json: no image tower {name}: {error}") from error
    # timm's v1 models use the exact GELU, and transformers' SigLIP does not.
    activation = nn.GELU(**_activation(folder, vision))
    for block in model.visual.trunk.blocks:
        block.mlp.act = activation
    model.visual.trunk.attn_pool.mlp.act = activation
    return model


def _text(folder: Path, config: Any) -> ModelConfig:
    return _sizes(folder, config) | {
        "heads": config.num_attention_heads,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }


def _sizes(folder: Path, config: Any) -> ModelConfig:
    """Return the settings that open_clip's text and image towers share."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        # Add half a unit, because open_clip rounds the product down.
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
        "act_kwargs": _activation(folder, config),
    }


def _activation(folder: Path, config: Any) -> dict[str, str]:
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{folder}/config.json: hidden_act {config.hidden_act!r} is not supported; "
            f"{', '.join(ACTIVATIONS)} are"
        )
    return ACTIVATIONS[config.hidden_act]


def _read(folder: Path) -> dict[str, Tensor]:
    """Read the weights from one file or from its shards."""
    paths = [folder / "model.safetensors"]
    if not paths[0].is_file():
        paths = sorted(folder.glob("model-*-of-*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no model.safetensors; pickled weights are not loaded from folders"
        )
    weights: dict[str, Tensor] = {}
    for path in paths:
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file: {error}") from error
    return weights


def _clip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        **_renamed(weights, "text_model.", "", TEXT | OPEN_CLIP_BLOCK),
        **_renamed(weights, "vision_model.", "visual.", CLIP_VISION | OPEN_CLIP_BLOCK),
        "text_projection": weights["text_projection.weight"].T,
        "visual.proj": weights["visual_projection.weight"].T,
        "logit_scale": weights["logit_scale"],
    }


def _siglip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    trunk = "visual.trunk."
    vision = {
        name.replace("attn.in_proj_", "attn.qkv."): weight
        for name, weight in _renamed(weights, "vision_model.", trunk, SIGLIP_VISION).items()
    }
    vision[f"{trunk}pos_embed"] = vision[f"{trunk}pos_embed"][None]
    for kind in ("weight", "bias"):
        q, *kv = vision.pop(f"{trunk}head.attention.in_proj_{kind}").chunk(3)
        vision[f"{trunk}attn_pool.q.{kind}"] = q
        vision[f"{trunk}attn_pool.kv.{kind}"] = torch.cat(kv)
    return {
        **_renamed(weights, "text_model.", "text.", TEXT | OPEN_CLIP_BLOCK),
        **vision,
        "logit_scale": weights["logit_scale"].squeeze(),
        "logit_bias": weights["logit_bias"].squeeze(),
    }


def _renamed(weights: dict[str, Tensor], old: str, new: str, names: Names) -> dict[str, Tensor]:
    """Return the weights whose names start with `old`, renamed.

    Query, key and value weights are joined.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith(old) and not name.endswith("position_ids"):
            name = name.removeprefix(old)
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            renamed[new + name] = weight
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
    return renamed


def _preprocessing(
    folder: Path, settings: dict[str, Any], image_size: tuple[int, int]
) -> Preprocessing:
    """Return open_clip's description of a transformers image processor."""
    height, width = image_size
    size = {"height": height, "width": width}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    if settings["size"] == {"shortest_edge": min(image_size)} and crop == size:
        resize_mode = "shortest"
    elif settings["size"] == size and crop in (None, size):
        resize_mode = "squash"
    else:
        raise ValueError(
            f"{folder}: the image processor resizes to {settings['size']} and crops to {crop}; "
            f"only the model's {size}, squashed or cropped from the shorter side, is supported"
        )
    usual = all(settings.get(f"do_{step}") for step in ("resize", "rescale", "normalize"))
    if (
        not usual
        or abs(settings["rescale_factor"] * 255 - 1) > 1e-6
        or settings["resample"] not in INTERPOLATIONS
    ):
        raise ValueError(
            f"{folder}: the image processor does not resize (bilinear or bicubic), scale by 1/255 "
            "and normalise; no other is supported"
        )
    return preprocessing(
        {
            "size": image_size,
            "mean": tuple(settings["image_mean"]),
            "std": tuple(settings["image_std"]),
            "interpolation": INTERPOLATIONS[settings["resample"]],
            "resize_mode": resize_mode,
        }
    )
