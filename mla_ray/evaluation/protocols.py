"""How published tables measure retrieval: which captions and images are ranked together, and which
figures are printed of it. A protocol is data: another is one more entry of `PROTOCOLS`.

Sources: VSE++'s evaluation code for COCO (Karpathy's test images, five consecutive thousands, five
captions an image); the paper's released code (`metrics.py`, `evaluate.py`, after CLIP4Clip's) for
`paper-*`; the papers of XTD (arXiv 2012.05107), XM3600 (2205.12522) and CLIP4Clip (2104.08860).

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


@dataclass(frozen=True)
class Protocol:
    """What is ranked together, and what tables print of it.

    Args:
        name: for the command line and in messages.
        fold: images of a gallery, taken in the table's order; None is one gallery of all.
        each: so many captions of an image count, its first in the table; None is all of them.
        rivals: what an image's best caption has ahead of it; see `rank`.
        images: as many have to be there, or the figures are not those of the protocol.
        captions: likewise.
        published: figures that tables print, by their names in `Figures.named`.

    """

    name: str
    fold: int | None = None
    each: int | None = None
    rivals: Rivals = "captions"
    images: int | None = None
    captions: int | None = None
    published: tuple[str, ...] = ("AR",)

    def chosen(self, image_ids: Sequence[str]) -> Mask:
        """Which captions [N] count; `image_ids` says what each is of."""
        seen: Counter[str] = Counter()
        kept = np.ones(len(image_ids), dtype=np.bool_)
        if self.each is not None:
            for row, image_id in enumerate(image_ids):
                seen[image_id] += 1
                kept[row] = seen[image_id] <= self.each
        return kept

    def check(self, language: str, images: int, captions: int) -> None:
        """Raise a ValueError if these are not the numbers that the protocol is defined on."""
        for what, given, wanted in (
            ("images", images, self.images),
            ("captions", captions, self.captions),
        ):
            if wanted not in (None, given):
                raise ValueError(
                    f"protocol {self.name!r} is over {wanted:,} {what}, and there are {given:,} in "
                    f"{language!r}; give it that table and split, or choose the protocol 'full'"
                )
        if self.fold and images % self.fold:
            raise ValueError(
                f"protocol {self.name!r} has folds of {self.fold:,} images, and the {images:,} in "
                f"{language!r} cannot be cut into such; choose the protocol 'full'"
            )

    def rank(
        self, text: FeatureRows, image: FeatureRows, image_of: Ints, progress: Advance | None = None
    ) -> Ranks:
        """Ranks of each caption and image in the gallery that it belongs to.

        Galleries are ranked one after another, of features that stay where they are: never is
        more copied than `rank` copies of one.

        Args:
            text: [N, E] any norm.
            image: [M, E] any norm, in the table's order.
            image_of: [N] the row of `image` that each caption belongs to.
            progress: called with the number of captions just scored, twice for every caption.

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
        """The ranks of each gallery apart; with a mask [N] those of its captions and images."""
        kept = np.ones(len(ranks.t2i), dtype=np.bool_) if captions is None else captions
        fold = ranks.image_of // (self.fold or len(ranks.i2t))
        some = [ranks.only(kept & (fold == number)) for number in np.unique(fold[kept])]
        return some or [ranks.only(kept)]


@dataclass(frozen=True)
class Figures:
    """Figures of a language, the mean over its galleries; or of languages, the mean over them.

    Ranks count from 1, and the median of an even number of them may end in a half.
    """

    recall: Recall
    median_rank: dict[str, float]
    mean_rank: dict[str, float]

    @classmethod
    def of(cls, folds: Sequence[Ranks], ks: Sequence[int] = KS) -> "Figures":
        """Of the galleries of one language; R@k for `ks` besides 1, 5 and 10."""
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
        """Each language counts the same; images are those of the one that has most."""
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
        return {
            **self.recall.as_dict(),
            "median rank": self.median_rank,
            "mean rank": self.mean_rank,
        }

    def named(self) -> dict[str, float]:
        """Every figure: "AR", "t2i R@1", "i2t median rank" and so on."""
        named = {"AR": round(self.recall.ar, 2)}
        for way, recall in (("t2i", self.recall.t2i), ("i2t", self.recall.i2t)):
            named |= {f"{way} {name}": value for name, value in recall.items()}
            named[f"{way} median rank"] = self.median_rank[way]
            named[f"{way} mean rank"] = self.mean_rank[way]
        return named


def with_standard(ks: Sequence[int]) -> list[int]:
    """Values of k in order, among them those that AR needs."""
    return sorted({*KS, *ks})


def resampled(
    folds: Sequence[Ranks], ks: Sequence[int] = KS, draws: int = DRAWS, seed: int = 0
) -> npt.NDArray[np.float64]:
    """R@k [draws, 2, K] of bootstrap samples, from 0 to 1: the mean over galleries.

    Each gallery's images are drawn by themselves. K is that of `with_standard`.
    """
    every = with_standard(ks)
    each = [fold.resampled_shares(draws, seed + n, every) for n, fold in enumerate(folds)]
    mean: npt.NDArray[np.float64] = np.mean(each, axis=0)
    return mean


def intervals(
    drawn: npt.NDArray[np.float64], ks: Sequence[int] = KS
) -> dict[str, tuple[float, float]]:
    """95 % by percentiles, of "AR" and of each "t2i R@k" and "i2t R@k", from `resampled`."""
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
    """Of nothing, as where a mask leaves no caption, 0."""
    return round(float(np.mean(values)), 2) if values else 0.0


def _mean_of(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: _mean([each[name] for each in figures]) for name in figures[0]}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name; a ValueError says which there are."""
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
        # The paper's code ranks an image's best caption among the best captions of other images.
        replace(_MULTI30K, name="paper-multi30k", rivals="images"),
        replace(_COCO_5X1K, name="paper-coco-5x1k", rivals="images"),
        replace(_COCO_CN, name="paper-coco-cn", rivals="images"),
    )
}
