"""What a server has to answer, computed here from a native and packs that the tests have made.

Nothing of `mla_ray.serving` or `mla_ray.index` is used: texts and images go through the encoders
one by one, scores are cosines by numpy, and all of them are looked at.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack

Floats = npt.NDArray[np.float64]


def unit(features: torch.Tensor) -> Floats:
    """The direction [E] of one row of features [1, E]."""
    (row,) = features.double().numpy()
    return row / np.linalg.norm(row)


@torch.inference_mode()
def text_vector(native: Native, pack: LanguagePack | None, text: str) -> Floats:
    """[E], of a text by its language's encoder, or by the native's own where there is no pack."""
    if pack is None:
        return unit(native.model.encode_text(native.tokenize([text])))
    (ids,) = pack.tokenizer([text])
    rows = torch.tensor([list(ids)], dtype=torch.long)
    return unit(pack.encoder(rows, torch.tensor([len(ids)])))


@torch.inference_mode()
def image_vector(native: Native, image: bytes) -> Floats:
    """[E]"""
    pixels = native.preprocess(Image.open(BytesIO(image)).convert("RGB"))
    return unit(native.model.encode_image(pixels[None]))


def nearest(query: Floats, vectors: Sequence[Floats], k: int) -> list[tuple[int, float]]:
    """The `k` places in `vectors` of the highest cosines, best first, each with its cosine."""
    cosines = np.stack(vectors) @ query
    return [(int(place), float(cosines[place])) for place in np.argsort(-cosines)[:k]]
