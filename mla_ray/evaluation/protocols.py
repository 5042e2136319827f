"""Retrieval protocols of published tables.

A protocol defines which captions and images are ranked together, and which figures are published.
A new protocol is a new entry of `PROTOCOLS`.

Sources:

- COCO: the evaluation code of VSE++ (Karpathy's test images in five consecutive folds of 1,000,
  five captions per image).
- `paper-*`: the paper's released code (`metrics.py` and `evaluate.py`, which follow CLIP4Clip's).
- XTD (arXiv 2012.05107), XM3600 (arXiv 2205.12522) and CLIP4Clip (arXiv 2104.08860).

Shapes: N captions, M images, E joint embedding size, K values of k.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_ray.evaluation.recall import (
    KS,
    FeatureRows,
    Ints,
    Mask,
    Ranks,
    Recall,
    Rivals,
    Subset,
    mean_recall,
    rank,
)
from mla_ray.runtime.progress import Advance

DRAWS = 2000
"""Number of bootstrap samples."""


@dataclass(frozen=True)
class Protocol:
    """A retrieval protocol: what is ranked together, and which figures are published.

    Args:
        name: Name on the command line and in messages.
        fold: Number of images in a gallery, in table order. None is one gallery with all images.
        each: Number of captions that count per image, the first in the table. None counts all.
        rivals: What counts as ranked ahead of an image's best caption, see `rank`.
        images: Required number of images. None allows any number.
        captions: Required number of captions. None allows any number.
        published: Figures that published tables print, by their names in `Figures.named`.

    """

    name: str
    fold: int | None = None
    each: int | None = None
    rivals: Rivals = "captions"
    images: int | None = None
    captions: int | None = None
    published: tuple[str, ...] = ("AR",)

    def chosen(self, image_ids: Sequence[str]) -> Mask:
        """Return which captions count, `[N]` bool.

        Args:
            image_ids: The image of each caption, in table order.

        """
        seen: Counter[str] = Counter()
        kept = np.ones(len(image_ids), dtype=np.bool_)
        if self.each is not None:
            for row, image_id in enumerate(image_ids):
                seen[image_id] += 1
                kept[row] = seen[image_id] <= self.each
        return kept

    def check(self, language: str, images: int, captions: int) -> None:
        """Check that the protocol is defined on these numbers of images and captions.

        Args:
            language: BCP-47 code, for the message.
            images: Number of images.
            captions: Number of captions that count.

        Raises:
            ValueError: The numbers differ from the required ones, or the images do not divide into
                folds.

        """
        for what, given, wanted in (
            ("images", images, self.images),
            ("captions", captions, self.captions),
        ):
            if wanted not in (None, given):
                raise ValueError(
                    f"protocol {self.name!r} is over {wanted:,} {what}, and there are {given:,} in "
                    f"{language!r}; use that protocol's table and split, or the protocol 'full'"
                )
        if self.fold and images % self.fold:
            raise ValueError(
                f"protocol {self.name!r} has folds of {self.fold:,} images, and the {images:,} in "
                f"{language!r} do not divide into them; choose the protocol 'full'"
            )

    def rank(
        self, text: FeatureRows, image: FeatureRows, image_of: Ints, progress: Advance | None = None
    ) -> Ranks:
        """Rank each caption and each image in the gallery that it belongs to.

        Galleries are ranked one after another. Features are not copied up front, so the memory is
        that of `rank` for one gallery.

        Args:
            text: `[N, E]` float32, any norm.
            image: `[M, E]` float32, any norm, in table order.
            image_of: `[N]` int64, the row of `image` that each caption belongs to.
            progress: Called with the number of captions just scored, twice for every caption.

        """
        if self.fold is None:
            return rank(text, image, image_of, rivals=self.rivals, progress=progress)
        t2i = np.empty(len(text), dtype=np.int64)
        i2t = np.empty(len(image), dtype=np.int64)
        for start in range(0, len(image), self.fold):
            images = np.arange(start, min(start + self.fold, len(image)))
            captions = np.flatnonzero(image_of // self.fold == start // self.fold)
            ranks = rank(
                Subset(text, captions),
                Subset(image, images),
                image_of[captions] - start,
                rivals=self.rivals,
                progress=progress,
            )
            t2i[captions], i2t[images] = ranks.t2i, ranks.i2t
        return Ranks(t2i, i2t, image_of)

    def folds(self, ranks: Ranks, captions: Mask | None = None) -> list[Ranks]:
        """Split ranks by gallery.

        Args:
            ranks: Result of `rank`.
            captions: `[N]` bool that selects captions and their images. None selects all.

        Returns:
            The ranks per gallery, without galleries that have no selected caption. If no caption
            is selected, one empty result.

        """
        kept = np.ones(len(ranks.t2i), dtype=np.bool_) if captions is None else captions
        fold = ranks.image_of // (self.fold or len(ranks.i2t))
        some = [ranks.only(kept & (fold == number)) for number in np.unique(fold[kept])]
        return some or [ranks.only(kept)]


@dataclass(frozen=True)
class Figures:
    """Recall, median rank and mean rank.

    Figures of a language are means over its galleries. Figures of several languages are means over
    the languages. Ranks count from 1. The median of an even number of ranks may be half-integral.
    """

    recall: Recall
    median_rank: dict[str, float]
    mean_rank: dict[str, float]

    @classmethod
    def of(cls, folds: Sequence[Ranks], ks: Sequence[int] = KS) -> "Figures":
        """Compute the figures of one language from the ranks of its galleries.

        Args:
            folds: Ranks per gallery.
            ks: Values of k, in addition to 1, 5 and 10.

        """
        some = {
            "t2i": [fold.t2i for fold in folds if len(fold.t2i)],
            "i2t": [fold.i2t for fold in folds if len(fold.i2t)],
        }
        return cls(
            mean_recall(folds, with_standard(ks)),
            {
                way: _mean([float(np.median(each)) + 1 for each in ranks])
                for way, ranks in some.items()
            },
            {
                way: _mean([float(np.mean(each)) + 1 for each in ranks])
                for way, ranks in some.items()
            },
        )

    @classmethod
    def mean(cls, languages: Sequence["Figures"]) -> "Figures":
        """Compute the mean over languages with equal weights.

        The number of images is the maximum over the languages, the number of captions is the sum.
        """
        recalls = [language.recall for language in languages]
        return cls(
            Recall(
                _mean_of([recall.t2i for recall in recalls]),
                _mean_of([recall.i2t for recall in recalls]),
                max(recall.images for recall in recalls),
                sum(recall.captions for recall in recalls),
            ),
            _mean_of([language.median_rank for language in languages]),
            _mean_of([language.mean_rank for language in languages]),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-serializable dictionary."""
        return {
            **self.recall.as_dict(),
            "median rank": self.median_rank,
            "mean rank": self.mean_rank,
        }

    def named(self) -> dict[str, float]:
        """Return every figure by its name, such as "AR", "t2i R@1" or "i2t median rank"."""
        named = {"AR": round(self.recall.ar, 2)}
        for way, recall in (("t2i", self.recall.t2i), ("i2t", self.recall.i2t)):
            named |= {f"{way} {name}": value for name, value in recall.items()}
            named[f"{way} median rank"] = self.median_rank[way]
            named[f"{way} mean rank"] = self.mean_rank[way]
        return named


def with_standard(ks: Sequence[int]) -> list[int]:
    """Return the values of k and those that AR needs (1, 5 and 10), sorted without repeats."""
    return sorted({*KS, *ks})


def resampled(
    folds: Sequence[Ranks], ks: Sequence[int] = KS, draws: int = DRAWS, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Compute R@k of bootstrap samples, as the mean over galleries.

    The images of each gallery are drawn separately.

    Args:
        folds: Ranks per gallery.
        ks: Values of k, in addition to 1, 5 and 10.
        draws: Number of samples.
        seed: Seed of the first gallery. The n-th gallery uses `seed + n`.

    Returns:
        `[draws, 2, K]` float64 from 0 to 1, with text-to-image first. The values of k are those of
        `with_standard`.

    """
    every = with_standard(ks)
    each = [fold.resampled_shares(draws, seed + n, every) for n, fold in enumerate(folds)]
    mean: npt.NDArray[np.float64] = np.mean(each, axis=0)
    return mean


def intervals(
    drawn: npt.NDArray[np.float64], ks: Sequence[int] = KS
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals of "AR" and of each "t2i R@k" and "i2t R@k".

    Args:
        drawn: Result of `resampled`.
        ks: The same values of k as for `resampled`.

    Returns:
        Lower and upper bound in percent, by the name of the figure.

    """
    every = with_standard(ks)
    samples = {"AR": drawn[:, :, [every.index(k) for k in KS]].mean((1, 2))}
    for way, name in enumerate(("t2i", "i2t")):
        samples |= {f"{name} R@{k}": drawn[:, way, place] for place, k in enumerate(every)}
    bounds = {}
    for name, sample in samples.items():
        low, high = 100 * np.percentile(sample, [2.5, 97.5])
        bounds[name] = (round(float(low), 2), round(float(high), 2))
    return bounds


def _mean(values: Sequence[float]) -> float:
    """Return the rounded mean, or 0 for no values, as when a mask selects no caption."""
    return round(float(np.mean(values)), 2) if values else 0.0


def _mean_of(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: _mean([each[name] for each in figures]) for name in figures[0]}


def protocol_named(name: str) -> Protocol:
    """Return the protocol with this name.

    Raises:
        ValueError: There is no such protocol.

    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


_SIX = tuple(f"{way} R@{k}" for way in ("t2i", "i2t") for k in KS)
FULL = Protocol("full")
_MULTI30K = Protocol("multi30k", images=1000)
_COCO_5X1K = Protocol("coco-5x1k", fold=1000, each=5, images=5000)
_COCO_CN = Protocol("coco-cn", images=1000, captions=1053)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        FULL,
        _MULTI30K,
        _COCO_5X1K,
        Protocol("coco-5k", each=5, images=5000, published=_SIX),
        _COCO_CN,
        Protocol("xtd", images=1000, captions=1000, published=("t2i R@10",)),
        Protocol("xm3600", images=3600, published=("t2i R@1", "i2t R@1")),
        Protocol(
            "msrvtt-1ka",
            images=1000,
            captions=1000,
            published=(*_SIX[:3], "t2i median rank", "t2i mean rank"),
        ),
        # The paper's code ranks an image's best caption against the best caption of each other
        # image.
        replace(_MULTI30K, name="paper-multi30k", rivals="images"),
        replace(_COCO_5X1K, name="paper-coco-5x1k", rivals="images"),
        replace(_COCO_CN, name="paper-coco-cn", rivals="images"),
    )
}
