"""Ranks of text-image retrieval, and recall@k of them, by the paper's protocol (section 4.1).

Text-to-image counts every caption; image-to-text counts the best-ranked of an image's captions. AR
is the mean of R@1, R@5 and R@10 over both directions. What is ranked against what in the published
tables of a data set is in `protocols`.

Shapes: N captions, M images, E joint embedding size, K values of k.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mla_ray.runtime.progress import Advance

KS = (1, 5, 10)
NOISE = (
    1e-6  # of a cosine in float32: equal vectors may differ by it, by where in a matrix they are
)
TILE = 64 << 20
"""Bytes of scores, and at most of captions' features, that are in memory at a time."""
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rivals = Literal["captions", "images"]


class FeatureRows(Protocol):
    """Features [N, E] that are read some rows at a time: an array, a memory map, a `Subset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Ints, /) -> Floats: ...


@dataclass(frozen=True)
class Subset:
    """The rows `index` [n] of features, each copied only when it is asked for."""

    rows: FeatureRows
    index: Ints

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Ints, /) -> Floats:
        return self.rows[self.index[rows]]


@dataclass(frozen=True)
class Recall:
    """Percentages, and over how many they were taken."""

    t2i: dict[str, float]
    i2t: dict[str, float]
    images: int
    captions: int

    @property
    def ar(self) -> float:
        return float(np.mean([way[f"R@{k}"] for way in (self.t2i, self.i2t) for k in KS]))

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

    def only(self, captions: Mask) -> "Ranks":
        """The ranks of some captions (a mask [N]) and of their images, in galleries still whole."""
        images, image_of = np.unique(self.image_of[captions], return_inverse=True)
        return Ranks(self.t2i[captions], self.i2t[images], image_of)

    def recall(self, captions: Mask | None = None) -> Recall:
        """Over all captions, or those of a mask [N] and their images; the gallery stays whole."""
        ranks = self if captions is None else self.only(captions)
        return mean_recall([ranks])

    def resampled(self, draws: int = 2000, seed: int = 0) -> npt.NDArray[np.float64]:
        """AR [draws] of bootstrap samples: images drawn with replacement, each with its captions.

        Ranks stay those in the whole gallery. The same seed draws the same images, so that two
        models are compared sample by sample.
        """
        six = self.resampled_shares(draws, seed).reshape(draws, -1)
        ar: npt.NDArray[np.float64] = 100 * six.mean(1)
        return ar

    def resampled_shares(
        self, draws: int = 2000, seed: int = 0, ks: Sequence[int] = KS
    ) -> npt.NDArray[np.float64]:
        """R@k [draws, 2, K] of the samples of `resampled`, from 0 to 1; text-to-image first."""
        size = len(self.i2t)
        captions = np.bincount(self.image_of, minlength=size)
        caption_hits = [np.bincount(self.image_of, self.t2i < k, minlength=size) for k in ks]
        image_hits = [(self.i2t < k).astype(np.float64) for k in ks]
        generator = np.random.default_rng(seed)
        drawn = np.empty((draws, 2, len(ks)))
        for draw in range(draws):
            times = np.bincount(generator.integers(size, size=size), minlength=size)
            drawn[draw, 0] = [times @ column / (times @ captions) for column in caption_hits]
            drawn[draw, 1] = [times @ column / size for column in image_hits]
        return drawn


def mean_recall(folds: Sequence[Ranks], ks: Sequence[int] = KS) -> Recall:
    """R@k of several galleries: the mean over them, each counting the same. `ks` contains KS."""

    def share(ranks: Ints, k: int) -> float:
        return float(np.mean(ranks < k)) if len(ranks) else 0.0

    def means(ranks: Sequence[Ints]) -> dict[str, float]:
        shares = {k: [share(each, k) for each in ranks] for k in ks}
        return {f"R@{k}": round(100 * float(np.mean(shares[k])), 2) for k in ks}

    return Recall(
        means([fold.t2i for fold in folds]),
        means([fold.i2t for fold in folds]),
        sum(len(fold.i2t) for fold in folds),
        sum(len(fold.t2i) for fold in folds),
    )


def rank(
    text: FeatureRows,
    image: FeatureRows,
    image_of: Ints,
    *,
    rivals: Rivals = "captions",
    progress: Advance | None = None,
) -> Ranks:
    """Rank every caption against every image by cosine, and the other way round.

    A tie counts against the right answer (cosines closer than `NOISE` tie): a collapsed encoder
    scores nothing. A feature that is `missing` comes last where it is asked for, of a caption or an
    image, and is never a rival. An image none of whose captions has a feature comes last, too.

    In memory are the images' features once, normalised, a `TILE` of scores and a quarter of that;
    captions are read and normalised as they are scored.

    Args:
        text: [N, E] any norm.
        image: [M, E] any norm.
        image_of: [N] the row of `image` that each caption belongs to; every image has at least one.
        rivals: what an image's best caption has ahead of it: other captions, or other images, each
            counted once by its own best caption.
        progress: called with the number of captions just scored; every caption is scored twice.

    """
    unit = np.empty((len(image), image[:1].shape[1]), dtype=np.float32)
    step = _at_a_time(image, 1)
    for start in range(0, len(image), step):
        unit[start : start + step] = _normalised(image[start : start + step])
    absent = missing(unit)
    step = min(_at_a_time(text, len(unit)), len(text))
    tile = np.empty((step, len(unit)), dtype=np.float32)
    own = np.empty(len(text), dtype=np.float32)
    t2i = np.empty(len(text), dtype=np.int64)
    for rows, scores in _scores(text, unit, absent, tile, progress):
        own[rows] = scores[np.arange(len(scores)), image_of[rows]]
        t2i[rows] = len(unit) - 1 - (scores < own[rows, None] - NOISE).sum(1)
    best = np.full(len(unit), -np.inf, dtype=np.float32)
    np.maximum.at(best, image_of, own)
    ahead = np.zeros(len(unit), dtype=np.int64)
    if rivals == "images":
        order = np.argsort(image_of, kind="stable")  # an image's captions one after another
        every = _scores(Subset(text, order), unit, absent, tile, progress)
        ahead = _images_ahead(every, image_of[order], best)
        last = np.full(len(unit), len(unit) - 1)
    else:
        for rows, scores in _scores(text, unit, absent, tile, progress):
            scores[np.arange(len(scores)), image_of[rows]] = -np.inf  # its own captions are right
            ahead += len(scores) - (scores < best - NOISE).sum(0)
        last = len(text) - np.bincount(image_of, minlength=len(unit))
    return Ranks(t2i, np.where(np.isneginf(best), last, ahead), image_of)


def missing(features: Floats) -> Mask:
    """Which features [N, E] there are not: they are zero, or not finite, and have no direction."""
    peak = _peak(features)
    return ~(np.isfinite(peak) & (peak > 0))


def _peak(features: Floats) -> Floats:
    """The greatest absolute number of each [N]; without a copy of them all."""
    peak: Floats = np.maximum(features.max(1), -features.min(1))
    return peak


def _images_ahead(every: Iterable[tuple[slice, Floats]], image_of: Ints, best: Floats) -> Ints:
    """How many other images [M] have a caption at least as near as the image's own `best` [M].

    `every` has the scores of all captions, an image's one after another, as `image_of` [N] is.
    """
    ahead = np.zeros(len(best), dtype=np.int64)
    last, of_last = -1, np.zeros(len(best), dtype=np.bool_)
    for rows, scores in every:
        of = image_of[rows]
        scores[np.arange(len(scores)), of] = -np.inf
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        near = ~np.logical_and.reduceat(scores < best - NOISE, starts, axis=0)
        if of[0] == last:  # cut in the middle of its captions: count it anew, as a whole
            ahead -= of_last
            near[0] |= of_last
        ahead += near.sum(0)
        last, of_last = of[-1], near[-1].copy()
    return ahead


def _scores(
    text: FeatureRows, unit: Floats, absent: Mask, tile: Floats, progress: Advance | None
) -> Iterator[tuple[slice, Floats]]:
    """Cosines [n, M] of as many captions at a time as `tile` holds, and which captions they are.

    That with a caption without a feature, or an image that is `absent`, is less than any other.
    They are in the tile, and the next are written over them.
    """
    for start in range(0, len(text), len(tile)):
        rows = slice(start, min(start + len(tile), len(text)))
        scores = tile[: rows.stop - start]
        directions = _normalised(text[rows])
        np.matmul(directions, unit.T, out=scores)
        scores[missing(directions)] = -np.inf
        if absent.any():
            scores[:, absent] = -np.inf
        yield rows, scores
        if progress:
            progress(len(scores))


def _at_a_time(rows: FeatureRows, width: int) -> int:
    """How many rows have a matrix `width` wide, and features, that fit a `TILE` each."""
    size: int = rows[:1].shape[1]
    return max(1, TILE // (4 * max(width, size)))


def _normalised(features: Floats) -> Floats:
    """Features [N, E] of length one; zeros for one that is missing."""
    features = np.asarray(features, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        # By the greatest number first: squares of the very large and the very small are no numbers.
        scaled = features / _peak(features)[:, None]
        unit: Floats = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    unit[missing(features)] = 0
    return unit
