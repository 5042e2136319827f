"""Losses of a batch in NLT and LE (paper, section 3.2), computed from frozen features.

English targets and image features come from the feature stores. Of the native model, only the
frozen text blocks run here. The workers share the rows of a batch: each takes every
`world_size`-th row, starting at its rank.

Shapes: B rows of this worker, G rows of all workers, L tokens, E joint embedding size.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mla_ray.data.blocks import Examples
from mla_ray.model.encoder import LanguageEncoder
from mla_ray.model.objectives import le_loss, nlt_loss, positive_groups
from mla_ray.model.tokenizers import Ids
from mla_ray.training.distributed import gather_features, rank, world_size

Encode = Callable[[Sequence[Ids]], Tensor]
"""Function from token ids to features `[B, E]`, with their autograd graph."""


def nlt_batch_loss(encode: Encode, batch: Examples, device: torch.device) -> Tensor:
    """Return this worker's part of the NLT loss. The parts add up to the loss of the batch."""
    own = batch[slice(rank(), None, world_size())]
    target_BE = to_device(own.frozen, device)
    return nlt_loss(encode(own.ids), target_BE) * (len(own.ids) / len(batch.ids))


def le_batch_loss(
    encode: Encode, batch: Examples, logit_scale: float, device: torch.device
) -> Tensor:
    """Return the LE loss of the whole batch, on every worker.

    Gradients flow only to this worker's own texts. Their sum over the workers is the gradient of
    the whole batch.
    """
    world = world_size()
    shares = [np.arange(len(batch.ids))[worker::world] for worker in range(world)]
    ordered = batch[np.concatenate(shares)]  # by rank, as `gather_features` returns them
    group_G = positive_groups(ordered.key.tolist(), ordered.caption.tolist())
    text_BE = encode(batch[slice(rank(), None, world)].ids)
    return le_loss(
        gather_features(text_BE.float(), [len(share) for share in shares]),
        to_device(ordered.frozen, device),
        to_device(group_G, device),
        logit_scale,
    )


def encode_in_two_passes(
    encoder: LanguageEncoder, texts: Sequence[Ids], device: torch.device
) -> Tensor:
    """Encode token ids to features `[B, E]`, with their autograd graph.

    A batch can mix dictionary words and long captions. If it saves padding, short and long texts
    are encoded in separate passes.
    """
    tower = encoder.tower
    lengths = np.array([len(ids) for ids in texts])
    shortest_first = np.argsort(lengths, kind="stable")
    inner = [] if tower.fixed_length else split_point(lengths[shortest_first])
    cuts = [0, *inner, len(texts)]
    parts = []
    for start, end in pairwise(cuts):
        ids_BL, length_B = tower.pad([texts[row] for row in shortest_first[start:end]])
        parts.append(encoder(to_device(ids_BL, device), to_device(length_B, device)))
    return torch.cat(parts)[to_device(np.argsort(shortest_first), device)]


def to_device(values: Tensor | npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy values to a device. For a GPU, the copy is queued and Python does not wait for it."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def split_point(lengths: npt.NDArray[np.int64]) -> list[int]:
    """Return where to split ascending lengths `[B]` in two for the least padding.

    The list is empty if a split saves less than 15 % of the padded tokens.
    """
    count = len(lengths)
    if count < 2:
        return []
    before = np.arange(1, count)
    padded = before * lengths[:-1] + (count - before) * lengths[-1]
    if padded.min() > 0.85 * count * lengths[-1]:
        return []
    return [int(padded.argmin()) + 1]
