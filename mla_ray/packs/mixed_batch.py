"""Batches that mix languages: one pass through the frozen blocks, with each row's own acquirers.

A server with twenty languages holds one native and twenty packs, not twenty models. The blocks,
which do most of the work, process one batch for all languages.

Shapes: B batch, L tokens, D text width, E joint embedding size.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mla_ray.model.native import Native
from mla_ray.model.tokenizers import Ids, Shares, pad
from mla_ray.packs.pack import LanguagePack


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of the batch in one language. `pack` is None for English."""

    pack: LanguagePack | None
    rows: slice
    ids: Tensor | list[Ids]  # native: [B, context length], pack: rows of different lengths
    end_B: Tensor  # position of each text's end token
    unknown_B: Shares


class Mixed(NamedTuple):
    """Features and unknown-token shares, in the order of the texts.

    A row with NaN or infinity does not affect other rows.
    """

    features: Tensor  # [B, E] float32, not L2-normalized
    unknown_tokens: Shares  # [B] share of each text's tokens that are unknown


def encode_mixed(native: Native, texts: Sequence[tuple[str, LanguagePack | None]]) -> Tensor:
    """Encode texts of several languages to features `[B, E]`, float32, not L2-normalized.

    The features are those of `read_mixed`, in the order of the texts.
    """
    return read_mixed(native, texts).features


@torch.inference_mode()
def read_mixed(native: Native, texts: Sequence[tuple[str, LanguagePack | None]]) -> Mixed:
    """Encode texts of several languages in one pass.

    Args:
        native: Native that all packs were made for.
        texts: Texts, each with the pack of its language, or None for English.

    Returns:
        Features `[B, E]`, float32, not L2-normalized, and shares of unknown tokens `[B]`, float64,
        from 0 to 1. Both are in the order of the texts.

    """
    tower = native.text
    if not texts:
        return Mixed(torch.zeros(0, native.dim, device=native.device), np.zeros(0))
    groups: dict[int, list[int]] = defaultdict(list)
    for row, (_, pack) in enumerate(texts):
        groups[id(pack)].append(row)
    parts: list[Segment] = []
    start = 0
    for rows in groups.values():
        parts.append(_tokenize(native, texts[rows[0]][1], [texts[row][0] for row in rows], start))
        start += len(rows)
    order = [row for rows in groups.values() for row in rows]

    length = tower.padded_length(max(int(part.end_B.max()) for part in parts) + 1)
    embedded = [_embed(native, part, length) for part in parts]
    x_BLD = torch.cat([x for x, _ in embedded])
    padding_BL = torch.cat([padding for _, padding in embedded])
    end_B = torch.cat([part.end_B for part in parts]).to(x_BLD.device)

    def acquire(block: int, x_BLD: Tensor) -> Tensor:
        for part in parts:
            if part.pack:
                x_BLD[part.rows] = part.pack.encoder.acquirers[block](x_BLD[part.rows])
        return x_BLD

    sorted_BE = tower.encode(x_BLD, tower.sentence_position(end_B), padding_BL, acquire)
    features_BE = torch.empty_like(sorted_BE)
    features_BE[order] = sorted_BE
    unknown_B = np.empty(len(texts))
    unknown_B[order] = np.concatenate([part.unknown_B for part in parts])
    return Mixed(features_BE.float(), unknown_B)


def _tokenize(native: Native, pack: LanguagePack | None, texts: list[str], start: int) -> Segment:
    rows = slice(start, start + len(texts))
    if pack is None:
        ids_BL = native.tokenize(texts)
        return Segment(
            None, rows, ids_BL, native.text.english_end(ids_BL), native.unknown_of(ids_BL)
        )
    ragged, unknown_B = pack.tokenizer.read(texts)
    return Segment(pack, rows, ragged, torch.tensor([len(ids) - 1 for ids in ragged]), unknown_B)


def _embed(native: Native, part: Segment, length: int) -> tuple[Tensor, Tensor]:
    """Return token embeddings `[B, L, D]` and a mask `[B, L]` that is True for padding."""
    device, tower = native.device, native.text
    if part.pack is None:
        assert isinstance(part.ids, Tensor)  # noqa: S101  for mypy
        ids_BL = part.ids[:, :length].to(device)
        return tower.token_embedding(ids_BL), ids_BL == tower.pad_id
    assert isinstance(part.ids, list)  # noqa: S101  for mypy
    ids_BL, length_B = pad(part.ids, length)
    padding_BL = torch.arange(length) >= length_B[:, None]
    return part.pack.encoder.embedding(ids_BL.to(device)), padding_BL.to(device)
