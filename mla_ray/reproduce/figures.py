"""Figures from records: means over languages and seeds, differences, and intervals.

Intervals are 95 % bootstrap intervals over test images and seeds. All variants use the same
samples, so a difference compares the same images and seeds.

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
"""Number of bootstrap samples."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A mean and its 95 % interval, in points of AR."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        """Mean and interval with signs, such as `+1.6 [+0.9, +2.3]`."""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def per_image(lines: Sequence[str]) -> Floats:
    """Return the share of each image in AR.

    AR is the mean of R@1, R@5 and R@10 in both directions. The share of an image is therefore the
    mean of its six hits.

    Args:
        lines: Places text-to-image and image-to-text, one character per image.

    Returns:
        `[M]` float64 from 0 to 1. NaN for an image without a caption.

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
    """All measurements.

    Attributes:
        records: Records by the key of their run.
        languages: BCP-47 codes.
        seeds: Seeds of the runs.

    """

    records: Mapping[str, Mapping[str, Any]]
    languages: Sequence[str]
    seeds: Sequence[int]

    def places(self, key: str, test: str, language: str) -> list[str] | None:
        """Return the places of a run in a language of a test set, or None if there are none."""
        lines = self.records.get(key, {}).get("places", {}).get(test, {}).get(language)
        return None if lines is None else list(lines)

    def runs_of(self, variant: Variant, language: str) -> list[Run]:
        """Return the runs in which a variant measures `language`, one per seed."""
        group = group_of(variant, language, self.languages)
        return [Run(variant, group, seed) for seed in self.seeds[: variant.seeds]]

    def shares(
        self, variant: Variant, language: str, test: str = "emoji", of: str | None = None
    ) -> Floats | None:
        """Return the share of each image in AR for the runs of a language.

        Args:
            variant: Variant of the runs.
            language: Language of the runs.
            test: Name of the test set.
            of: Language that is evaluated, for example English. The default is `language`.

        Returns:
            `[S, M]` float64, or None if a run is missing.

        """
        lines = [self.places(r.key, test, of or language) for r in self.runs_of(variant, language)]
        if any(line is None for line in lines) or not lines:
            return None
        return np.stack([per_image(line) for line in lines if line is not None])

    def complete(self, variants: Sequence[Variant]) -> list[str]:
        """Return the languages in which all these variants were measured with all their seeds."""
        return [
            language
            for language in self.languages
            if all(self.shares(variant, language) is not None for variant in variants)
        ]

    def over(
        self, variant: Variant, languages: Sequence[str], of: str | None = None
    ) -> list[Floats]:
        """Return the `shares` of each language, without languages whose runs are missing."""
        each = [self.shares(variant, language, of=of) for language in languages]
        return [shares for shares in each if shares is not None]

    def difference(self, variant: Variant, base: Variant) -> Figure | None:
        """Return the mean difference `variant - base` over the languages that both have.

        Returns:
            None if the variants have no language in common.

        """
        languages = self.complete([variant, base])
        if not languages:
            return None
        return figure(self.over(variant, languages), self.over(base, languages))

    def english_shares(self, test: str = "emoji") -> Floats | None:
        """Return the share of each image in English AR, measured with the native itself.

        Returns:
            `[1, M]` float64, or None if the native was not measured.

        """
        lines = self.places("English", test, "en")
        return None if lines is None else per_image(lines)[None]

    def english(self, test: str = "emoji") -> Figure | None:
        """Return the English AR of the native, or None if it was not measured."""
        shares = self.english_shares(test)
        return None if shares is None else figure([shares])

    def reworded(self, variant: Variant) -> "Reworded | None":
        """Compare English with other names and the languages of a variant on the same images.

        Returns:
            None if a measurement is missing.

        """
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
    """AR on the images that have a second English name.

    Attributes:
        images: Number of these images.
        english: English AR with CLDR's names, on which the native was trained.
        others: English AR with the second names.
        languages: Mean AR over languages with their own names.

    """

    images: int
    english: Figure
    others: Figure
    languages: Figure


def figure(each: Sequence[Floats], less: Sequence[Floats] | None = None) -> Figure:
    """Compute the mean AR over languages and its interval.

    Args:
        each: Shares of each language, `[S, M]` float64.
        less: Shares to subtract, in the same shape. The result is the mean difference.

    Returns:
        The mean and its 95 % interval in points of AR.

    """
    mean, drawn = _of(each)
    if less is not None:
        other, other_drawn = _of(less)
        mean, drawn = mean - other, drawn - other_drawn
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Figure(100 * mean, 100 * float(low), 100 * float(high))


def _of(each: Sequence[Floats]) -> tuple[float, Floats]:
    """Return the mean over languages and seeds, and the means `[D]` of bootstrap samples."""
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
    """Draw bootstrap samples with a fixed seed.

    Returns:
        The count of each image per sample, `[D, M]` int64, and the seeds per sample, `[D, S]`
        int64.

    """
    generator = np.random.default_rng(0)
    times = generator.multinomial(images, np.full(images, 1 / images), DRAWS)
    return times, generator.integers(seeds, size=(DRAWS, seeds))
