"""The two training objectives (paper, section 3.2).

Both are computed in float32, also under autocast. With a logit scale of 100, bfloat16 cosines would
change the exponent of the softmax by up to 0.4, and gradients by 5 % and more.

Shapes: B batch, G rows of the whole batch on all workers, E joint embedding size.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


def nlt_loss(text_BE: Tensor, english_BE: Tensor) -> Tensor:
    """Compute the Native Language Transfer loss: mean squared error to the English features.

    Neither side is L2-normalized.

    Args:
        text_BE: Features `[B, E]` of the translations.
        english_BE: Frozen features `[B, E]` of the English texts.

    Returns:
        Scalar, float32.

    """
    with torch.autocast(text_BE.device.type, enabled=False):
        return F.mse_loss(text_BE.float(), english_BE.float())


def le_loss(
    text_GE: Tensor, image_GE: Tensor, group_G: Tensor, logit_scale: float | Tensor
) -> Tensor:
    """Compute the Language Exposure loss: symmetric InfoNCE of texts and images.

        (CE(s * t @ i.T) + CE(s * i @ t.T)) / 2,  t and i L2-normalized

    Args:
        text_GE: Features `[G, E]` of the texts, not L2-normalized.
        image_GE: Features `[G, E]` of the texts' images in the same order, not L2-normalized.
        group_G: Group of each row `[G]`, int64, as `positive_groups` computes it. Rows of the same
            group (five captions of one image, two drawings of one thing) are not negatives of each
            other and are left out of the softmax.
        logit_scale: s, 1 / temperature. The paper fixes it at 100, which is CLIP's own.

    Returns:
        Scalar, float32.

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
    """Group the rows of a batch that share an image or a caption, transitively.

    `le_loss` does not use rows of the same group as negatives. For example, the drawings of an
    apple by Noto and by Fluent are both correct for "Apfel". Callers pass the `text.identity` of
    captions, so that "apfel." is the same caption.

    Args:
        images: Identifier of each row's image.
        captions: Identity of each row's caption.

    Returns:
        Group numbers `[G]`, int64, from 0.

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
