"""What tells one native from another: a hash of all that changes what it makes of a text or image.

By the first rule, that of mla-ray 0.1.0, a fingerprint saw weights and preprocessing. The second
also sees what weights do not say (attention heads, pooling, masks, activations ...) and the
tokenizer. Whoever changes the description raises `RULE`, and has the values of before recognised
(`mla_ray.model.recognition`).

The description is in words of this module's own, and of an activation it is what it computes: a
library that renames a class, or adds a setting that is off, changes no fingerprint. Floats are
rounded to nine digits, so that no machine's last bit is in it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from mla_ray.model.open_clip_config import Preprocessing
from mla_ray.model.towers import Description, TextTower

RULE = 2

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
"""Of modules: all that changes an output and that no weight's shape gives away."""

POINTS = (-4.0, -2.5, -1.0, -0.3, 0.4, 1.0, 2.0, 5.0)
"""What activations are told apart by."""

PROBES = (
    "",
    "a dog",
    "Two  DOGS' puppies; it's 2024!",
    "café naïve 犬 &amp; 🐶 cafe\u0301",
    "The quick brown fox-jumps over_the lazy (dog) @ 50% of $3.99?",
)
"""Texts by which tokenizers are told apart, beside their vocabulary; one too long is added.

open_clip's and transformers' tokenizers of CLIP agree on them. They do not on curly quotes, of
which open_clip makes straight ones.
"""


def weights_and_preprocessing(model: Any) -> str:
    """The first rule: SHA-256 over preprocessing, names, shapes and float32 values of weights."""
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
    """The rule of today, in hex.

    Args:
        v1: what the first rule says.
        model: an open_clip model.
        tower: its text tower.
        tokenizer: open_clip's.
        tokenize: texts to the ids that the tower is given [B, context length].

    """
    document = {
        "rule": RULE,
        "weights and preprocessing": v1,
        "modules": _modules(model),
        "text tower": tower.description(),
        "tokenizer": _tokenizer(tower, tokenizer, tokenize),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


# --- the model ----------------------------------------------------------------------------------


def _modules(model: nn.Module) -> dict[str, Description]:
    """What is set of every module that something is set of, by its path."""
    settings: dict[str, Description] = {}
    # Duplicates too: whether blocks share one activation changes nothing.
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
    """The text tower itself, and all of a transformer of Hugging Face's."""
    if path == "text":
        return True
    is_hugging_faces = isinstance(getattr(model, "text", None), HFTextEncoder)
    return is_hugging_faces and f"{path}.".startswith("text.transformer.")


def _plain(value: Any) -> Any:
    """A setting as JSON has it, one number for a square of it; None of what is no setting."""
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
    """What an activation gives at `POINTS`; None of a module that is none."""
    held = (module.children(), module.parameters(recurse=False), module.buffers(recurse=False))
    if any(True for each in held for _ in each):
        return None
    x = torch.tensor(POINTS, dtype=torch.float64)
    try:
        y = module(x.clone())
    except Exception:  # pooling and the like take no vector, and say so as they please
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape or torch.equal(x, y):
        return None
    return [round(value, 6) + 0.0 for value in y.tolist()]


# --- the tokenizer ------------------------------------------------------------------------------


def _tokenizer(
    tower: TextTower, tokenizer: Any, tokenize: Callable[[Sequence[str]], Tensor]
) -> Description:
    """Its vocabulary, and the ids of probes as far as the tower looks at them."""
    too_long = " ".join(["one", "two", "three"] * tower.context_length)
    ids_BL = tokenize([*PROBES, too_long]).cpu()
    end_B = tower.english_end(ids_BL)
    lengths = [tower.batch_length(end + 1) for end in end_B.tolist()]
    ids = [row[:length] for row, length in zip(ids_BL.tolist(), lengths, strict=True)]
    read = tower.sentence_position(end_B).tolist()
    # One model is published with the tokens that frame a text under several names.
    framing = set(ids_BL[0, : int(end_B[0]) + 1].tolist())
    return {"probes": ids, "read at": read, **_vocabulary(tokenizer, framing)}


def _vocabulary(tokenizer: Any, without: set[int]) -> Description:
    """Tokens in the order of their ids, and in which order they are made or how much they score.

    Of open_clip's own tokenizer, and of Hugging Face's in open_clip's; of another one nothing.
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
    """Merges of a BPE, scores of a unigram model; a WordPiece has neither."""
    if hasattr(tokenizer, "sp_model"):
        pieces = tokenizer.sp_model
        return [_plain(pieces.get_score(row)) for row in range(pieces.get_piece_size())]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    model = json.loads(backend.to_str())["model"]
    if isinstance(model.get("vocab"), list):
        return [_plain(score) for _, score in model["vocab"]]
    # A pair was one string in earlier files.
    merges = model.get("merges") or []
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
