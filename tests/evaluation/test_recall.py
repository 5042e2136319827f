"""Promises of mla_ray.evaluation.recall, against counting by hand."""

import numpy as np
import numpy.typing as npt
import pytest

from mla_ray.evaluation import recall as recalling
from mla_ray.evaluation.recall import Floats, Ints, Recall, Rivals, rank

DIM = 16


def signs(count: int, seed: int) -> Floats:
    """[count, DIM] of +-1: cosines are multiples of 1/8, exact in float32, and often tie."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([-1, 1], np.float32), (count, DIM))


def by_hand(text: Floats, image: Floats, image_of: Ints) -> tuple[list[int], list[int]]:
    """Ranks by the protocol: rivals at least as near count against the right answer."""
    t, i = text.astype(np.float64), image.astype(np.float64)
    cosine: npt.NDArray[np.float64] = (t @ i.T) / np.outer(
        np.linalg.norm(t, axis=1), np.linalg.norm(i, axis=1)
    )
    t2i = [
        sum(cosine[n, m] >= cosine[n, own] for m in range(len(i)) if m != own)
        for n, own in enumerate(image_of)
    ]
    i2t = []
    for m in range(len(i)):
        best = max(cosine[n, m] for n in range(len(t)) if image_of[n] == m)
        i2t.append(sum(cosine[n, m] >= best for n in range(len(t)) if image_of[n] != m))
    return t2i, i2t


def several_each(images: int, most: int, seed: int) -> Ints:
    """Which image each caption is of: one to `most` captions an image, in no order."""
    rng = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(images), rng.integers(1, most + 1, images))
    return rng.permutation(image_of)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_counting_by_hand(seed: int) -> None:
    image_of = several_each(40, 5, seed)
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(40, DIM)).astype(np.float32)
    text = image[image_of] + 1.5 * rng.normal(size=(len(image_of), DIM)).astype(np.float32)
    text *= rng.uniform(0.1, 10, (len(text), 1)).astype(np.float32)  # of any norm
    ranks = rank(text, image, image_of)
    t2i, i2t = by_hand(text, image, image_of)
    assert ranks.t2i.tolist() == t2i
    assert ranks.i2t.tolist() == i2t
    recall = ranks.recall()
    assert 0 < recall.t2i["R@1"] < recall.t2i["R@5"] < recall.t2i["R@10"] < 100
    for k in (1, 5, 10):
        assert recall.t2i[f"R@{k}"] == round(100 * sum(r < k for r in t2i) / len(t2i), 2)
        assert recall.i2t[f"R@{k}"] == round(100 * sum(r < k for r in i2t) / len(i2t), 2)
    assert (recall.images, recall.captions) == (40, len(image_of))


@pytest.mark.parametrize("seed", range(3))
def test_a_tie_counts_against_the_right_answer(seed: int) -> None:
    image_of = several_each(50, 4, seed)
    text, image = signs(len(image_of), seed), signs(50, seed + 100)
    ranks = rank(text, image, image_of)
    t2i, i2t = by_hand(text, image, image_of)
    assert ranks.t2i.tolist() == t2i
    assert ranks.i2t.tolist() == i2t
    cosine = text @ image.T
    own = cosine[np.arange(len(text)), image_of]
    assert ((cosine > own[:, None]).sum(1) < ranks.t2i).any()  # there were ties to count


def test_captions_of_the_same_image_are_no_rivals() -> None:
    image = np.eye(2, dtype=np.float32)
    ranks = rank(image[[0, 0, 0, 1]], image, np.array([0, 0, 0, 1]))
    assert ranks.t2i.tolist() == [0, 0, 0, 0]
    assert ranks.i2t.tolist() == [0, 0]


def test_image_to_text_takes_the_best_of_an_images_captions() -> None:
    image = np.array([[1, 0], [0, 1]], np.float32)
    text = np.array([[1, 0.1], [-1, 0], [0.5, 1]], np.float32)
    ranks = rank(text, image, np.array([0, 0, 1]))
    assert ranks.i2t.tolist() == [0, 0]
    assert ranks.t2i.tolist() == [0, 1, 0]


def test_many_pieces_rank_as_one_does() -> None:
    count = 4200  # 4200 scores a caption: more than the 64 MB of one piece
    image_of = np.random.default_rng(0).permutation(count)
    text, image = signs(count, 1), signs(count, 2)
    text[::3] = image[image_of[::3]]
    assert 4 * count * count > 64 << 20
    ranks = rank(text, image, image_of)
    scores = text @ image.T  # small integers: exact
    own = scores[np.arange(count), image_of]
    assert ranks.t2i.tolist() == ((scores >= own[:, None]).sum(1) - 1).tolist()
    best = own[np.argsort(image_of)]
    assert ranks.i2t.tolist() == ((scores >= best).sum(0) - 1).tolist()


def test_a_mask_keeps_the_gallery_whole() -> None:
    image_of = several_each(40, 3, 0)
    rng = np.random.default_rng(1)
    image = rng.normal(size=(40, DIM)).astype(np.float32)
    text = image[image_of] + 2 * rng.normal(size=(len(image_of), DIM)).astype(np.float32)
    ranks = rank(text, image, image_of)
    mask = image_of % 3 == 0
    recall = ranks.recall(mask)
    t2i, i2t = by_hand(text, image, image_of)
    assert recall.captions == mask.sum()
    assert recall.images == 14
    for k in (1, 5, 10):
        hits = [r < k for r, kept in zip(t2i, mask, strict=True) if kept]
        assert recall.t2i[f"R@{k}"] == round(100 * float(np.mean(hits)), 2)
        hits = [r < k for r in i2t[::3]]
        assert recall.i2t[f"R@{k}"] == round(100 * float(np.mean(hits)), 2)
    alone = rank(text[mask], image[::3], image_of[mask] // 3).recall()
    assert recall.ar < alone.ar  # a smaller gallery would have flattered


def test_a_mask_of_nothing_scores_nothing() -> None:
    recall = rank(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), np.arange(3)).recall(
        np.zeros(3, dtype=bool)
    )
    assert (recall.ar, recall.images, recall.captions) == (0.0, 0, 0)


def test_a_collapsed_native_and_encoder_score_nothing() -> None:
    same = np.ones((30, DIM), np.float32)
    assert rank(same, same, np.arange(30)).recall().ar == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_an_encoder_collapsed_to_one_feature_scores_no_better_than_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(200, DIM)).astype(np.float32)
    text = np.tile(rng.normal(size=(1, DIM)).astype(np.float32), (200, 1))
    recall = rank(text, image, np.arange(200)).recall()
    assert recall.i2t == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    assert recall.t2i == {"R@1": 0.5, "R@5": 2.5, "R@10": 5.0}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_encoder_collapsed_to_no_direction_scores_nothing(value: float) -> None:
    text = np.full((30, DIM), value, np.float32)
    with np.errstate(all="ignore"):
        assert rank(text, signs(30, 0), np.arange(30)).recall().ar == 0.0


# --- the definition, counted by hand, with all that can be odd -----------------------------------


def defined(
    text: Floats, image: Floats, image_of: Ints, rivals: Rivals
) -> tuple[list[int], list[int]]:
    """Ranks by the definition, one by one, in float64.

    Of a caption: how many other images are at least as near. Of an image: how many captions of
    others, or other images by any of their captions, are at least as near as its own best. Who has
    no feature is last of all and ahead of none.
    """

    def direction(feature: Floats) -> npt.NDArray[np.float64] | None:
        wide = feature.astype(np.float64)
        length = np.sqrt((wide**2).sum())
        return wide / length if np.isfinite(length) and length > 0 else None

    texts, images = [direction(t) for t in text], [direction(i) for i in image]
    of = image_of.tolist()

    def near(n: int, m: int) -> float | None:
        t, i = texts[n], images[m]
        return None if t is None or i is None else round(float(t @ i), 6)

    def ahead(rival: float | None, own: float) -> bool:
        return rival is not None and rival >= own

    t2i, i2t = [], []
    for n, m in enumerate(of):
        own = near(n, m)
        others = [other for other in range(len(images)) if other != m]
        t2i.append(sum(own is None or ahead(near(n, other), own) for other in others))
    for m in range(len(images)):
        known = [own for n, its in enumerate(of) if its == m and (own := near(n, m)) is not None]
        theirs = [(its, near(n, m)) for n, its in enumerate(of) if its != m]
        if rivals == "captions":
            i2t.append(sum(not known or ahead(rival, max(known)) for _, rival in theirs))
        else:
            i2t.append(len({its for its, rival in theirs if not known or ahead(rival, max(known))}))
    return t2i, i2t


@pytest.mark.parametrize("rivals", ["captions", "images"])
@pytest.mark.parametrize("seed", range(40))
def test_recall_is_what_its_definition_says(
    seed: int, rivals: Rivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ties, several captions, features of any size and such as are not there, on both sides.

    Cosines are multiples of 1/8, so that ties are exact.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    image_of = several_each(count, 4, seed)
    image, text = signs(count, seed), signs(len(image_of), seed + 1000)
    text[::3] = image[image_of[::3]]
    monkeypatch.setattr(recalling, "TILE", int(rng.choice([64, 1000, 64 << 20])))
    for features in (text, image):
        features *= rng.choice(np.array([1e-30, 0.1, 1, 1e30], np.float32), (len(features), 1))
        bad = rng.random(len(features)) < rng.choice([0, 0.1, 0.6])
        features[bad] = rng.choice(np.array([0, np.nan, np.inf], np.float32), (bad.sum(), 1))
        partly = rng.random(len(features)) < rng.choice([0, 0.1])
        features[partly, int(rng.integers(DIM))] = np.nan
    ranks = rank(text, image, image_of, rivals=rivals)
    t2i, i2t = defined(text, image, image_of, rivals)
    assert ranks.t2i.tolist() == t2i
    assert ranks.i2t.tolist() == i2t
    recall = ranks.recall()
    for k in (1, 5, 10):
        assert recall.t2i[f"R@{k}"] == round(100 * sum(r < k for r in t2i) / len(t2i), 2)
        assert recall.i2t[f"R@{k}"] == round(100 * sum(r < k for r in i2t) / len(i2t), 2)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_one_caption_without_a_feature_costs_itself_alone(value: float) -> None:
    image = np.random.default_rng(0).normal(size=(250, DIM)).astype(np.float32)
    text = image.copy()
    text[7] = value
    recall = rank(text, image, np.arange(250)).recall()
    assert recall.t2i["R@1"] == recall.i2t["R@1"] == 99.6
    text = image[np.arange(500) % 250]
    text[7] = value  # its image has another caption
    recall = rank(text, image, np.arange(500) % 250).recall()
    assert (recall.t2i["R@1"], recall.i2t["R@1"]) == (99.8, 100)


def test_ar_is_the_mean_of_six() -> None:
    recall = Recall(
        {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0}, {"R@1": 40.0, "R@5": 50.0, "R@10": 61.0}, 5, 9
    )
    assert recall.ar == pytest.approx(211 / 6)
    assert recall.as_dict() == {
        "t2i": {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0},
        "i2t": {"R@1": 40.0, "R@5": 50.0, "R@10": 61.0},
        "AR": 35.17,
        "images": 5,
        "captions": 9,
    }
