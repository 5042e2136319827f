"""Ranks and recall@k of text-image retrieval by the paper's protocol (section 4.1).

Text-to-image recall counts every caption. Image-to-text recall counts the best-ranked caption of
each image. AR (average recall) is the mean of R@1, R@5 and R@10 over both directions. The module
`protocols` defines what is ranked together in the published tables of a dataset.

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
    1e-6  # float32 cosines of equal vectors may differ by this, depending on their matrix position
)
TILE = 64 << 20
"""Maximum bytes of the scores, and of the captions' features, that are in memory at a time."""
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rivals = Literal["captions", "images"]


class FeatureRows(Protocol):
    """Features `[N, E]` float32 that are read in slices: an array, a memory map or a `Subset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Ints, /) -> Floats: ...


@dataclass(frozen=True)
class Subset:
    """View of selected rows of features. Rows are copied only when they are read.

    Args:
        rows: The features.
        index: `[n]` int64, the selected rows.

    """

    rows: FeatureRows
    index: Ints

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Ints, /) -> Floats:
        return self.rows[self.index[rows]]


@dataclass(frozen=True)
class Recall:
    """Recall@k in percent, with the number of images and captions.

    `t2i` (text-to-image) and `i2t` (image-to-text) map "R@1", "R@5" and so on to percentages.
    """

    t2i: dict[str, float]
    i2t: dict[str, float]
    images: int
    captions: int

    @property
    def ar(self) -> float:
        """Average recall: the mean of R@1, R@5 and R@10 over both directions, in percent."""
        return float(np.mean([way[f"R@{k}"] for way in (self.t2i, self.i2t) for k in KS]))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-serializable dictionary."""
        return {
            "t2i": self.t2i,
            "i2t": self.i2t,
            "AR": round(self.ar, 2),
            "images": self.images,
            "captions": self.captions,
        }


@dataclass(frozen=True)
class Ranks:
    """Ranks of both directions, counted from 0.

    Args:
        t2i: `[N]` int64, the rank of each caption's image.
        i2t: `[M]` int64, the rank of each image's best caption.
        image_of: `[N]` int64, the image that each caption belongs to.

    """

    t2i: Ints
    i2t: Ints
    image_of: Ints

    def only(self, captions: Mask) -> "Ranks":
        """Select captions and their images. The ranks remain those in the full gallery.

        Args:
            captions: `[N]` bool.

        """
        images, image_of = np.unique(self.image_of[captions], return_inverse=True)
        return Ranks(self.t2i[captions], self.i2t[images], image_of)

    def recall(self, captions: Mask | None = None) -> Recall:
        """Compute the recall. The ranks remain those in the full gallery.

        Args:
            captions: `[N]` bool that selects captions and their images. None selects all.

        """
        ranks = self if captions is None else self.only(captions)
        return mean_recall([ranks])

    def resampled(self, draws: int = 2000, seed: int = 0) -> npt.NDArray[np.float64]:
        """Compute AR of bootstrap samples of the images.

        Images are drawn with replacement, each with its captions. The ranks remain those in the
        full gallery. Equal seeds draw equal images, so two models can be compared sample by sample.

        Args:
            draws: Number of samples.
            seed: Seed of the random generator.

        Returns:
            `[draws]` float64 in percent.

        """
        six = self.resampled_shares(draws, seed).reshape(draws, -1)
        ar: npt.NDArray[np.float64] = 100 * six.mean(1)
        return ar

    def resampled_shares(
        self, draws: int = 2000, seed: int = 0, ks: Sequence[int] = KS
    ) -> npt.NDArray[np.float64]:
        """Compute R@k of the bootstrap samples of `resampled`.

        Args:
            draws: Number of samples.
            seed: Seed of the random generator.
            ks: Values of k.

        Returns:
            `[draws, 2, K]` float64 from 0 to 1, with text-to-image first.

        """
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
    """Compute R@k as the mean over galleries with equal weights.

    Args:
        folds: Ranks per gallery.
        ks: Values of k. They must contain 1, 5 and 10.

    """

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
    """Rank images for every caption, and captions for every image, by cosine similarity.

    Ties count against the correct answer, so a collapsed encoder scores zero. Cosines that differ
    by less than `NOISE` are ties. A caption or image whose feature is `missing` gets the last rank,
    and such a feature never ranks ahead of others. An image gets the last rank if no caption of it
    has a feature.

    Memory holds one normalized copy of the image features, one `TILE` of scores, and a quarter of a
    `TILE` for comparisons. Captions are read and normalized when they are scored.

    Args:
        text: `[N, E]` float32, any norm.
        image: `[M, E]` float32, any norm.
        image_of: `[N]` int64, the row of `image` that each caption belongs to. Every image has at
            least one caption.
        rivals: What counts as ranked ahead of an image's best caption. "captions" counts the
            captions of other images. "images" counts each other image once, by its best caption.
        progress: Called with the number of captions just scored. Every caption is scored twice.

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
        order = np.argsort(image_of, kind="stable")  # captions of one image are consecutive
        every = _scores(Subset(text, order), unit, absent, tile, progress)
        ahead = _images_ahead(every, image_of[order], best)
        last = np.full(len(unit), len(unit) - 1)
    else:
        for rows, scores in _scores(text, unit, absent, tile, progress):
            scores[np.arange(len(scores)), image_of[rows]] = -np.inf  # own captions are no rivals
            ahead += len(scores) - (scores < best - NOISE).sum(0)
        last = len(text) - np.bincount(image_of, minlength=len(unit))
    return Ranks(t2i, np.where(np.isneginf(best), last, ahead), image_of)


def missing(features: Floats) -> Mask:
    """Return which features are missing: they are zero or not finite, and have no direction.

    Args:
        features: `[N, E]` float32.

    Returns:
        `[N]` bool.

    """
    peak = _peak(features)
    return ~(np.isfinite(peak) & (peak > 0))


def _peak(features: Floats) -> Floats:
    """Return the maximum absolute value of each feature, `[N]`, without a copy of the features."""
    peak: Floats = np.maximum(features.max(1), -features.min(1))
    return peak


def _images_ahead(every: Iterable[tuple[slice, Floats]], image_of: Ints, best: Floats) -> Ints:
    """Count the other images with a caption at least as near as the image's own best one.

    Args:
        every: Row slices and scores of all captions. Captions of one image are consecutive.
        image_of: `[N]` int64, the image of each caption in this order.
        best: `[M]` float32, the score of each image's best caption.

    Returns:
        `[M]` int64.

    """
    ahead = np.zeros(len(best), dtype=np.int64)
    last, of_last = -1, np.zeros(len(best), dtype=np.bool_)
    for rows, scores in every:
        of = image_of[rows]
        scores[np.arange(len(scores)), of] = -np.inf
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        near = ~np.logical_and.reduceat(scores < best - NOISE, starts, axis=0)
        if of[0] == last:  # a tile boundary split its captions: count it once
            ahead -= of_last
            near[0] |= of_last
        ahead += near.sum(0)
        last, of_last = of[-1], near[-1].copy()
    return ahead


def _scores(
    text: FeatureRows, unit: Floats, absent: Mask, tile: Floats, progress: Advance | None
) -> Iterator[tuple[slice, Floats]]:
    """Yield row slices of the captions with their cosines `[n, M]` float32.

    The cosine is -inf if the caption has no feature or the image is `absent`. The scores are a view
    of `tile`, and the next step overwrites them.
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
    """Return how many rows to process at a time.

    A `TILE` then holds their scores, `width` per row, and another `TILE` their features.
    """
    size: int = rows[:1].shape[1]
    return max(1, TILE // (4 * max(width, size)))


def _normalised(features: Floats) -> Floats:
    """Return the features `[N, E]` scaled to unit length, and zeros for missing features."""
    features = np.asarray(features, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Divide by the maximum first: squares of very large or small values leave float32's range.
        scaled = features / _peak(features)[:, None]
        unit: Floats = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    unit[missing(features)] = 0
    return unit
