"""Fingerprints of natives: a hash of everything that changes their text or image features.

Rule 1 (mla-ray 0.1.0) covers weights and preprocessing. Rule 2 (current) also covers the tokenizer
and the settings that weights do not show: attention heads, pooling, masks, activations. Whoever
changes the description raises `identity.FINGERPRINT_RULE` and keeps the old values recognized
(`mla_ray.model.recognition`).

The description uses names of this module and describes an activation by its output values.
Therefore a library that renames a class, or adds a setting that is off, changes no fingerprint.
Floats are rounded to nine digits, so that they do not depend on a machine's last bit.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from mla_ray.model.identity import FINGERPRINT_RULE
from mla_ray.model.open_clip_config import Preprocessing
from mla_ray.model.towers import Description, TextTower

ATTRIBUTES = {
    # attention and norms
    *("num_heads", "num_kv_heads", "scaled_cosine", "scale_heads", "logit_scale_max", "eps"),
    *("add_zero_attn", "num_groups", "window_size", "shift_size"),
    # positions
    *("temperature", "max_res", "in_pixels", "linear_bands", "feat_shape", "ref_feat_shape"),
    *("grid_offset", "grid_indexing", "rotate_half", "rope_mixed", "no_embed_class"),
    # convolutions and pooling
    *("kernel_size", "stride", "padding", "padding_mode", "dilation", "groups", "ceil_mode"),
    *("count_include_pad", "divisor_override", "output_size", "add_maxpool"),
    *("pool", "pool_type", "global_pool", "attn_pool_type", "pool_include_prefix"),
    *("final_ln_after_pool", "num_prefix_tokens"),
    # images
    *("image_size", "img_size", "patch_size", "scale_factor", "mode", "align_corners"),
}
"""Module attributes that change an output and that no weight shape shows."""

POINTS = (-4.0, -2.5, -1.0, -0.3, 0.4, 1.0, 2.0, 5.0)
"""Inputs at which activations are compared."""

PROBES = (
    "",
    "a dog",
    "Two  DOGS' puppies; it's 2024!",
    "café naïve 犬 &amp; 🐶 cafe\u0301",
    "The quick brown fox-jumps over_the lazy (dog) @ 50% of $3.99?",
)
"""Texts that distinguish tokenizers, in addition to the vocabulary. A text that is too long for the
context is added.

open_clip's and transformers' CLIP tokenizers agree on these texts. They differ on curly quotes,
which open_clip replaces with straight quotes.
"""


def weights_and_preprocessing(model: Any) -> str:
    """Compute the fingerprint by rule 1.

    It is the SHA-256 of the preprocessing and of the weights' names, shapes and float32 values.

    Args:
        model: An open_clip model.

    Returns:
        64 hexadecimal digits.

    """
    digest = hashlib.sha256()
    preprocessing: Preprocessing = model.visual.preprocess_cfg
    digest.update(json.dumps(preprocessing, sort_keys=True, default=list).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


def fingerprint(
    v1: str,
    model: nn.Module,
    tower: TextTower,
    tokenizer: Any,
    tokenize: Callable[[Sequence[str]], Tensor],
) -> str:
    """Compute the fingerprint by the current rule.

    Args:
        v1: Fingerprint by rule 1.
        model: An open_clip model.
        tower: Text tower of the model.
        tokenizer: Tokenizer of open_clip.
        tokenize: Callable from texts to native token ids `[B, context length]`, int64.

    Returns:
        64 hexadecimal digits.

    """
    document = {
        "rule": FINGERPRINT_RULE,
        "weights and preprocessing": v1,
        "modules": _modules(model),
        "text tower": tower.description(),
        "tokenizer": _tokenizer(tower, tokenizer, tokenize),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


# --- the model ----------------------------------------------------------------------------------


def _modules(model: nn.Module) -> dict[str, Description]:
    """Return the settings of all modules that have some, by module path."""
    settings: dict[str, Description] = {}
    # Include duplicates: whether blocks share an activation module changes no output.
    for path, module in model.named_modules(remove_duplicate=False):
        if _is_described_by_the_tower(model, path):
            continue
        attributes = vars(module)
        plain = {name: _plain(attributes[name]) for name in ATTRIBUTES & attributes.keys()}
        plain["gives"] = _curve(module)
        if own := {name: value for name, value in plain.items() if value not in (None, False)}:
            settings[path] = own
    return settings


def _is_described_by_the_tower(model: nn.Module, path: str) -> bool:
    """Return whether `TextTower.description` covers a module.

    That is the text tower itself, and every module of a Hugging Face transformer.
    """
    if path == "text":
        return True
    is_hugging_faces = isinstance(getattr(model, "text", None), HFTextEncoder)
    return is_hugging_faces and f"{path}.".startswith("text.transformer.")


def _plain(value: Any) -> Any:
    """Return a setting as a JSON value, or None if the value is not a setting.

    A sequence of equal values, such as the sides of a square, becomes one value.
    """
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple | list):
        every = [_plain(each) for each in value]
        return every[0] if every and every.count(every[0]) == len(every) else every
    return None


@torch.inference_mode()
def _curve(module: nn.Module) -> list[float] | None:
    """Return the outputs of an activation at `POINTS`, or None for any other module."""
    held = (module.children(), module.parameters(recurse=False), module.buffers(recurse=False))
    if any(True for each in held for _ in each):
        return None
    x = torch.tensor(POINTS, dtype=torch.float64)
    try:
        y = module(x.clone())
    except Exception:  # pooling and similar modules reject a vector with various errors
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape or torch.equal(x, y):
        return None
    return [round(value, 6) + 0.0 for value in y.tolist()]


# --- the tokenizer ------------------------------------------------------------------------------


def _tokenizer(
    tower: TextTower, tokenizer: Any, tokenize: Callable[[Sequence[str]], Tensor]
) -> Description:
    """Return the vocabulary, and the ids of the probes up to the length that the tower reads."""
    too_long = " ".join(["one", "two", "three"] * tower.context_length)
    ids_BL = tokenize([*PROBES, too_long]).cpu()
    end_B = tower.english_end(ids_BL)
    lengths = [tower.batch_length(end + 1) for end in end_B.tolist()]
    ids = [row[:length] for row, length in zip(ids_BL.tolist(), lengths, strict=True)]
    read = tower.sentence_position(end_B).tolist()
    # The same model is published with several names for the tokens that frame a text.
    framing = set(ids_BL[0, : int(end_B[0]) + 1].tolist())
    return {"probes": ids, "read at": read, **_vocabulary(tokenizer, framing)}


def _vocabulary(tokenizer: Any, without: set[int]) -> Description:
    """Return the tokens in the order of their ids, and the order of merges or the scores.

    Supports open_clip's own tokenizer and Hugging Face tokenizers in open_clip's wrapper. Any other
    tokenizer gives empty lists.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if hasattr(inner, "get_vocab"):
        vocab, order = inner.get_vocab(), _of_model(inner)
    elif hasattr(inner, "encoder"):
        ranks: dict[tuple[str, str], int] = inner.bpe_ranks
        vocab = inner.encoder
        order = [" ".join(pair) for pair in sorted(ranks, key=ranks.__getitem__)]
    else:
        vocab, order = {}, []
    tokens = sorted((row, token) for token, row in vocab.items() if row not in without)
    return {"vocabulary": tokens, "order": order}


def _of_model(tokenizer: Any) -> list[Any]:
    """Return the merges of a BPE model or the scores of a unigram model. WordPiece has neither."""
    if hasattr(tokenizer, "sp_model"):
        pieces = tokenizer.sp_model
        return [_plain(pieces.get_score(row)) for row in range(pieces.get_piece_size())]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    model = json.loads(backend.to_str())["model"]
    if isinstance(model.get("vocab"), list):
        return [_plain(score) for _, score in model["vocab"]]
    # Older files store a pair as one string.
    merges = model.get("merges") or []
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
