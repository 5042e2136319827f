"""The two training objectives (paper, section 3.2).

Both are computed in float32, under autocast as well: cosines in bfloat16, times a logit scale of
100, are off by up to 0.4 in the exponent of the softmax, and gradients by 5 % and more.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


def nlt_loss(text_BE: Tensor, english_BE: Tensor) -> Tensor:
    """Native Language Transfer: mean squared error against the frozen English features.

    Neither side is L2-normalised. float32 scalar.
    """
    with torch.autocast(text_BE.device.type, enabled=False):
        return F.mse_loss(text_BE.float(), english_BE.float())


def le_loss(
    text_GE: Tensor, image_GE: Tensor, group_G: Tensor, logit_scale: float | Tensor
) -> Tensor:
    """Language Exposure: symmetric InfoNCE of texts and their images.

        (CE(s * t @ i.T) + CE(s * i @ t.T)) / 2,  t and i L2-normalised

    Args:
        text_GE: features of texts, not normalised.
        image_GE: features of their images, row by row, not normalised.
        group_G: int64. Rows of one group are no negatives of each other (five captions of one
            image, two drawings of one thing) and are left out of the sums.
        logit_scale: s, one over the temperature. The paper fixes 100, which is CLIP's own.

    Returns:
        float32 scalar.

    """
    with torch.autocast(text_GE.device.type, enabled=False):
        text_GE = F.normalize(text_GE.float(), dim=-1)
        image_GE = F.normalize(image_GE.float(), dim=-1)
        logits_GG = logit_scale * text_GE @ image_GE.T
        same_GG = group_G[:, None] == group_G[None, :]
        same_GG.fill_diagonal_(False)
        logits_GG = logits_GG.masked_fill(same_GG, float("-inf"))
        target_G = torch.arange(len(logits_GG), device=logits_GG.device)
        text_to_image = F.cross_entropy(logits_GG, target_G)
        image_to_text = F.cross_entropy(logits_GG.T, target_G)
        return (text_to_image + image_to_text) / 2


def positive_groups(
    images: Sequence[Hashable], captions: Sequence[Hashable]
) -> npt.NDArray[np.int64]:
    """Which rows of a batch are of one thing [G]: those that share an image or a caption.

    Transitively, within the batch. Inside a group nothing is a negative (`le_loss` masks it):
    Noto's and Fluent's apple are both right for "Apfel". Callers pass captions by their identity,
    so "apfel." is one, too.
    """
    parent: dict[tuple[str, Hashable], tuple[str, Hashable]] = {}

    def root(node: tuple[str, Hashable]) -> tuple[str, Hashable]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent.setdefault(above, above)
            node = above
        return node

    for image, caption in zip(images, captions, strict=True):
        parent[root(("image", image))] = root(("caption", caption))
    number: dict[tuple[str, Hashable], int] = {}
    return np.array([number.setdefault(root(("image", i)), len(number)) for i in images])
