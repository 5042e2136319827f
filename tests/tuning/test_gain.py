"""Promises of mla_ray.tuning.gain, and of the bootstrap in mla_ray.evaluation.recall."""

import numpy as np
import pytest

from mla_ray.evaluation.recall import Ranks, rank
from mla_ray.tuning.gain import gain
from mla_ray.tuning.table import table

IMAGES = 400


def ranks(noise: float, seed: int = 0, each: int = 2) -> Ranks:
    """Of texts that are their images and some noise."""
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(IMAGES, 16)).astype(np.float32)
    image_of = np.repeat(np.arange(IMAGES), each)
    text = image[image_of] + noise * generator.normal(size=(IMAGES * each, 16))
    return rank(text.astype(np.float32), image, image_of)


def test_resampled_ar_is_that_of_the_drawn_images() -> None:
    found = ranks(1.5)
    drawn = found.resampled(draws=3, seed=7)
    generator = np.random.default_rng(7)
    for ar in drawn:
        images = generator.integers(IMAGES, size=IMAGES)
        captions = np.concatenate([np.flatnonzero(found.image_of == image) for image in images])
        hits = [np.mean(found.t2i[captions] < k) for k in (1, 5, 10)]
        hits += [np.mean(found.i2t[images] < k) for k in (1, 5, 10)]
        assert ar == pytest.approx(100 * np.mean(hits))


def test_images_with_unlike_numbers_of_captions_keep_their_weight() -> None:
    image_of = np.array([0, 0, 0, 1])
    found = Ranks(np.array([0, 0, 0, 99]), np.array([0, 99]), image_of)
    drawn = np.unique(found.resampled(draws=200).round(6))
    both = 100 * np.mean([0.75] * 3 + [0.5] * 3)
    assert drawn.tolist() == pytest.approx([0.0, both, 100.0])


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = np.mean([ranks(1.5, seed).recall().ar for seed in range(1000, 1040)])
    covered = 0
    for seed in range(40):
        found = gain(ranks(1.5, seed), ranks(1.5, seed)).default
        covered += found.low <= truth <= found.high
    assert 34 <= covered <= 40


def test_a_better_model_is_a_gain_and_an_equal_one_is_none() -> None:
    worse, better = ranks(1.6), ranks(1.4)
    found = gain(worse, better)
    assert found.found
    assert found.difference.low < found.difference.value < found.difference.high
    assert found.difference.value == pytest.approx(better.recall().ar - worse.recall().ar, abs=1e-3)
    apart = found.swept.high - found.swept.low
    assert found.difference.high - found.difference.low < 1.5 * apart
    assert "a gain of +" in str(found)
    none = gain(worse, worse)
    assert (none.difference.low, none.difference.high, none.found) == (0, 0, False)
    assert "no gain" in str(none)
    assert "no gain" in str(gain(better, worse))


def test_the_same_seed_gives_the_same_interval() -> None:
    pair = ranks(1.6), ranks(1.5, seed=0)
    assert gain(*pair, seed=3) == gain(*pair, seed=3)
    assert gain(*pair, seed=3) != gain(*pair, seed=4)


def test_a_table_of_nothing_is_a_table() -> None:
    assert table([]).row_count == 0
