"""Gain of a sweep: test AR of the best settings compared with that of the default settings.

The split `test` plays no part in choosing the settings.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from upath import UPath

from mla_ray.evaluation.captions import CaptionTable
from mla_ray.evaluation.evaluation import encode_query, evaluate
from mla_ray.evaluation.recall import Ranks
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.tuning.outcome import Gain, Interval

DRAWS = 2000
"""Number of bootstrap samples."""


def ranks_of_packs(
    folders: Mapping[str, UPath],
    language: str,
    native: Native,
    captions: str | Path,
    skip_invalid: bool,
) -> dict[str, Ranks]:
    """Evaluate packs of one language on the split `test` of a caption table.

    Args:
        folders: Pack folders by name.
        language: BCP-47 code.
        native: The native of the packs.
        captions: The caption table.
        skip_invalid: Whether to skip invalid rows instead of raising.

    Returns:
        The ranks of each pack, by name.

    """
    table = CaptionTable.read(captions, [language], skip_invalid=skip_invalid)
    gallery = table.gallery(native)
    ranks = {}
    for name, folder in folders.items():
        packs = {language: LanguagePack.load(folder, native)}
        encode = partial(encode_query, native, packs, language)
        ranks[name] = evaluate(encode, language, table.rows, gallery).ranks
    return ranks


def gain(default: Ranks, swept: Ranks, seed: int = 0) -> Gain:
    """Return the test AR of both settings and their difference, with 95 % bootstrap intervals.

    Args:
        default: Ranks by the pack of the default settings.
        swept: Ranks of the same captions and images by the pack of the best settings.
        seed: Seed of the bootstrap samples, which are the same for both packs.

    """
    before, after = default.resampled(DRAWS, seed), swept.resampled(DRAWS, seed)
    was, now = default.recall().ar, swept.recall().ar
    return Gain(
        default=_interval(was, before),
        swept=_interval(now, after),
        difference=_interval(now - was, after - before),
        images=len(default.i2t),
        captions=len(default.t2i),
    )


def _interval(value: float, drawn: npt.NDArray[np.float64]) -> Interval:
    """Return a value with its 95 % percentile interval, rounded to three decimals."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value=round(value, 3), low=round(float(low), 3), high=round(float(high), 3))
