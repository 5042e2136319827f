"""Figures from records: means over languages and seeds, differences, intervals.

Intervals are 95 %, from bootstrap samples of test images and of seeds; the same samples for all
variants, so that a difference is of the same images and seeds.

Shapes: M test images, S seeds, D draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_ray.evaluation.recall import KS
from mla_ray.reproduce.ablations import Run, Variant, group_of
from mla_ray.reproduce.runs import LATER, NOTHING, REWORDED

DRAWS = 2000
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A mean and its interval, in points of AR."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def per_image(lines: Sequence[str]) -> Floats:
    """What each image adds to AR [M], from 0 to 1, by its places both ways; nan without a caption.

    AR is the mean of R@1, R@5 and R@10 both ways, so an image's share is the mean of its six hits.
    """
    hits = []
    for line in lines:
        letters = np.array(list(line))
        places = np.full(len(letters), np.inf)
        known = ~np.isin(letters, (LATER, NOTHING))
        places[known] = letters[known].astype(int)
        hits += [np.where(letters == NOTHING, np.nan, places < k) for k in KS]
    return np.asarray(np.mean(hits, axis=0))


@dataclass(frozen=True)
class Results:
    """All that was measured. `records` by run."""

    records: Mapping[str, Mapping[str, Any]]
    languages: Sequence[str]
    seeds: Sequence[int]

    def places(self, key: str, test: str, language: str) -> list[str] | None:
        lines = self.records.get(key, {}).get("places", {}).get(test, {}).get(language)
        return None if lines is None else list(lines)

    def runs_of(self, variant: Variant, language: str) -> list[Run]:
        """The runs, one a seed, that a language of a variant was measured by."""
        group = group_of(variant, language, self.languages)
        return [Run(variant, group, seed) for seed in self.seeds[: variant.seeds]]

    def shares(
        self, variant: Variant, language: str, test: str = "emoji", of: str | None = None
    ) -> Floats | None:
        """What each image adds [S, M] in the runs of `language`; of `of` if given, English say.

        None if a run is missing.
        """
        lines = [self.places(r.key, test, of or language) for r in self.runs_of(variant, language)]
        if any(line is None for line in lines) or not lines:
            return None
        return np.stack([per_image(line) for line in lines if line is not None])

    def complete(self, variants: Sequence[Variant]) -> list[str]:
        """Languages that all of these variants were measured in, on all seeds."""
        return [
            language
            for language in self.languages
            if all(self.shares(variant, language) is not None for variant in variants)
        ]

    def over(
        self, variant: Variant, languages: Sequence[str], of: str | None = None
    ) -> list[Floats]:
        """`shares` in each of these languages, those that are `complete`."""
        each = [self.shares(variant, language, of=of) for language in languages]
        return [shares for shares in each if shares is not None]

    def difference(self, variant: Variant, base: Variant) -> Figure | None:
        """Of two variants, over the languages that both were measured in."""
        languages = self.complete([variant, base])
        if not languages:
            return None
        return figure(self.over(variant, languages), self.over(base, languages))

    def english_shares(self, test: str = "emoji") -> Floats | None:
        """What each image adds [1, M] in English, by the native itself."""
        lines = self.places("English", test, "en")
        return None if lines is None else per_image(lines)[None]

    def english(self, test: str = "emoji") -> Figure | None:
        shares = self.english_shares(test)
        return None if shares is None else figure([shares])

    def reworded(self, variant: Variant) -> "Reworded | None":
        """English in other words, and every language of a variant, on the same images."""
        english, others = self.english_shares(), self.english_shares(REWORDED)
        each = self.over(variant, self.complete([variant]))
        if english is None or others is None or not each or np.isnan(others).all():
            return None
        there = np.where(np.isnan(others), np.nan, 0.0)
        return Reworded(
            int((there == 0).sum()),
            figure([english + there]),
            figure([others]),
            figure([shares + there for shares in each]),
        )


@dataclass(frozen=True)
class Reworded:
    """AR on the images that English has another name for.

    Attributes:
        images: how many.
        english: by CLDR's names, the kind that the native was trained on.
        others: by the other names, which are English as well.
        languages: the mean over languages, by their own names.

    """

    images: int
    english: Figure
    others: Figure
    languages: Figure


def figure(each: Sequence[Floats], less: Sequence[Floats] | None = None) -> Figure:
    """The mean over languages of [S, M] shares, in points; with `less` the mean difference."""
    mean, drawn = _of(each)
    if less is not None:
        other, other_drawn = _of(less)
        mean, drawn = mean - other, drawn - other_drawn
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Figure(100 * mean, 100 * float(low), 100 * float(high))


def _of(each: Sequence[Floats]) -> tuple[float, Floats]:
    """The mean over languages and seeds, and that of bootstrap samples [D]."""
    times, chosen = _samples(*each[0].shape)
    means, drawn = [], np.zeros(DRAWS)
    for shares in each:
        there = ~np.isnan(shares)
        filled = np.where(there, shares, 0.0)
        means.append(float(np.mean(filled.sum(1) / there.sum(1))))
        sampled = (times @ filled.T) / (times @ there.T)  # [D, S]
        drawn += np.take_along_axis(sampled, chosen, 1).mean(1) / len(each)
    return float(np.mean(means)), drawn


@lru_cache(maxsize=8)
def _samples(seeds: int, images: int) -> tuple[Ints, Ints]:
    """How often each image is in a sample [D, M], and which seeds are [D, S]; always the same."""
    generator = np.random.default_rng(0)
    times = generator.multinomial(images, np.full(images, 1 / images), DRAWS)
    return times, generator.integers(seeds, size=(DRAWS, seeds))
