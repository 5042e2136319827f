"""Promises of mla_ray.tuning.gain, and of the bootstrap in mla_ray.evaluation.recall."""

from collections import Counter
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mla_ray.evaluation.recall import Ranks
from mla_ray.tuning.gain import gain
from mla_ray.tuning.table import table

IMAGES = 400
MISS = 99


def all_or_nothing(found: npt.NDArray[np.bool_]) -> Ranks:
    """Of images with two captions each that are found first both ways, or not at all.

    All six recalls are then the share of images found, and so is AR, whatever images are drawn.
    """
    ranks = np.where(found, 0, MISS)
    return Ranks(np.repeat(ranks, 2), ranks, np.repeat(np.arange(len(found)), 2))


def first(count: int) -> Ranks:
    return all_or_nothing(np.arange(IMAGES) < count)


def test_resampled_ar_is_that_of_images_drawn_with_replacement() -> None:
    """All 27 draws of three images, of which one has one caption, one two and one three."""
    t2i = [0, 3, 20, 0, 7, MISS]
    i2t, captions = [0, 3, 6], {0: [0], 1: [1, 2], 2: [3, 4, 5]}
    expected = Counter[float]()
    for images in product(range(3), repeat=3):
        places = [t2i[caption] for image in images for caption in captions[image]]
        recalls = [np.mean([place < k for place in places]) for k in (1, 5, 10)]
        recalls += [np.mean([i2t[image] < k for image in images]) for k in (1, 5, 10)]
        expected[round(100 * float(np.mean(recalls)), 6)] += 1
    assert len(expected) > 5
    draws = 5000
    image_of = np.array([0, 1, 1, 2, 2, 2])
    drawn = Ranks(np.array(t2i), np.array(i2t), image_of).resampled(draws)
    counted = Counter(drawn.round(6).tolist())
    assert counted.keys() == expected.keys()
    for ar, ways in expected.items():
        share = ways / 27
        error = np.sqrt(share * (1 - share) / draws)
        assert abs(counted[ar] / draws - share) < 5 * error, ar


def test_images_with_unlike_numbers_of_captions_keep_their_weight() -> None:
    image_of = np.array([0, 0, 0, 1])
    ranks = Ranks(np.array([0, 0, 0, 99]), np.array([0, 99]), image_of)
    drawn = np.unique(ranks.resampled(draws=200).round(6))
    both = 100 * np.mean([0.75] * 3 + [0.5] * 3)
    assert drawn.tolist() == pytest.approx([0.0, both, 100.0])


@pytest.mark.slow
def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Each image is found with a chance of 0.4: the truth is an AR of 40."""
    covered = 0
    for seed in range(40):
        ranks = all_or_nothing(np.random.default_rng([5, seed]).random(IMAGES) < 0.4)
        interval = gain(ranks, ranks, seed).default
        covered += interval.low <= 40 <= interval.high
    assert 34 <= covered <= 40


def test_a_better_model_is_a_gain() -> None:
    """200 of 400 images against the same and 60 more: AR 50 and 65.

    The difference is of the same images, so its variance is that of the 60: 0.15 * 0.85 / 400.
    """
    measured = gain(first(200), first(260))
    assert (measured.images, measured.captions) == (400, 800)
    for interval, value, variance in (
        (measured.default, 50, 0.5 * 0.5),
        (measured.swept, 65, 0.65 * 0.35),
        (measured.difference, 15, 0.15 * 0.85),
    ):
        half = 1.96 * 100 * np.sqrt(variance / IMAGES)
        assert interval.value == value
        assert interval.low == pytest.approx(value - half, abs=0.1 * half)
        assert interval.high == pytest.approx(value + half, abs=0.1 * half)
    assert measured.significant
    assert "a gain of +15.0" in str(measured)


def test_an_equal_or_a_worse_model_is_no_gain() -> None:
    none = gain(first(200), first(200))
    assert (none.difference.low, none.difference.high, none.significant) == (0, 0, False)
    assert "no gain" in str(none)
    assert "no gain" in str(gain(first(260), first(200)))


def test_the_same_seed_gives_the_same_interval() -> None:
    pair = first(200), first(260)
    assert gain(*pair, seed=3) == gain(*pair, seed=3)
    assert gain(*pair, seed=3) != gain(*pair, seed=4)


def test_a_table_of_nothing_is_a_table() -> None:
    assert table([]).row_count == 0
