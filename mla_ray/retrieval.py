"""Recall@k of text-image retrieval, by the paper's protocol (section 4.1).

Text-to-image counts every caption; image-to-text counts the best-ranked of an image's captions. AR
is the mean of R@1, R@5 and R@10 over both directions. May import: numpy; never Ray, never torch.

Shapes: N captions, M images, E joint embedding size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KS = (1, 5, 10)
NOISE = (
    1e-6  # of a cosine in float32: equal vectors may differ by it, by where in a matrix they are
)
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """Percentages, and over how many they were taken."""

    t2i: dict[str, float]
    i2t: dict[str, float]
    images: int
    captions: int

    @property
    def ar(self) -> float:
        return float(np.mean([*self.t2i.values(), *self.i2t.values()]))

    def as_dict(self) -> dict[str, Any]:
        return {
            "t2i": self.t2i,
            "i2t": self.i2t,
            "AR": round(self.ar, 2),
            "images": self.images,
            "captions": self.captions,
        }


@dataclass(frozen=True)
class Ranks:
    """0-based ranks: of each caption's image [N], of each image's best caption [M]."""

    t2i: Ints
    i2t: Ints
    image_of: Ints

    def recall(self, captions: Mask | None = None) -> Recall:
        """Over all captions, or those of a mask [N] and their images; the gallery stays whole."""
        t2i, i2t = self.t2i, self.i2t
        if captions is not None:
            t2i = t2i[captions]
            i2t = i2t[np.unique(self.image_of[captions])]
        return Recall(_at_k(t2i), _at_k(i2t), len(i2t), len(t2i))

    def resampled(self, draws: int = 2000, seed: int = 0) -> npt.NDArray[np.float64]:
        """AR [draws] of bootstrap samples: images drawn with replacement, each with its captions.

        Ranks stay those in the whole gallery. The same seed draws the same images, so that two
        models are compared sample by sample.
        """
        size = len(self.i2t)
        captions = np.bincount(self.image_of, minlength=size)
        hits = [np.bincount(self.image_of, self.t2i < k, minlength=size) for k in KS]
        found = [(self.i2t < k).astype(np.float64) for k in KS]
        generator = np.random.default_rng(seed)
        drawn = np.empty(draws)
        for draw in range(draws):
            times = np.bincount(generator.integers(size, size=size), minlength=size)
            t2i = [times @ column / (times @ captions) for column in hits]
            i2t = [times @ column / size for column in found]
            drawn[draw] = 100 * np.mean([*t2i, *i2t])
        return drawn


def rank(text: Floats, image: Floats, image_of: Ints) -> Ranks:
    """Rank every caption against every image by cosine, and the other way round.

    A tie counts against the right answer (cosines closer than `NOISE` tie), and so does a feature
    that is zero or not finite: a collapsed encoder scores nothing.

    Args:
        text: [N, E] any norm.
        image: [M, E] any norm.
        image_of: [N] the row of `image` that each caption belongs to; every image has at least one.

    """
    with np.errstate(divide="ignore", invalid="ignore"):
        text = text / np.linalg.norm(text, axis=1, keepdims=True)
        image = image / np.linalg.norm(image, axis=1, keepdims=True)
    own = np.einsum("ne,ne->n", text, image[image_of], dtype=np.float32)
    best = np.full(len(image), -np.inf, dtype=np.float32)
    t2i = np.empty(len(text), dtype=np.int64)
    chunk = max(1, (64 << 20) // (4 * len(image)))  # 64 MB of scores at a time
    for start in range(0, len(text), chunk):
        rows = slice(start, start + chunk)
        scores = text[rows] @ image.T
        own[rows] = scores[np.arange(len(scores)), image_of[rows]]  # same rounding as its rivals
        t2i[rows] = (~(scores < own[rows, None] - NOISE)).sum(1) - 1
    np.maximum.at(best, image_of, own)
    ahead = np.zeros(len(image), dtype=np.int64)
    for start in range(0, len(text), chunk):
        rows = slice(start, start + chunk)
        scores = text[rows] @ image.T
        scores[
            np.arange(len(scores)), image_of[rows]
        ] = -np.inf  # an image's own captions are right
        ahead += (~(scores < best - NOISE)).sum(0)
    return Ranks(t2i, ahead, image_of)


def _at_k(ranks: Ints) -> dict[str, float]:
    return {f"R@{k}": round(100 * float(np.mean(ranks < k)), 2) if len(ranks) else 0.0 for k in KS}
