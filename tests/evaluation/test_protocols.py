"""Promises of evaluation.protocols and of what evaluation.recall ranks for them: against counting
by hand, and against torchmetrics."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate

from mla_ray.evaluation import recall as retrieval
from mla_ray.evaluation.evaluation import Gallery, evaluate, printed
from mla_ray.evaluation.protocols import (
    FULL,
    PROTOCOLS,
    Figures,
    Protocol,
    intervals,
    protocol_named,
    resampled,
    with_standard,
)
from mla_ray.evaluation.recall import KS, Floats, Ints, Ranks, Subset, rank

DIM = 16
TINY = Protocol("tiny", fold=8)


def signs(count: int, seed: int) -> Floats:
    """[count, DIM] of +-1: all of one norm, dot products are exact, and often tie."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), (count, DIM))


def several_each(images: int, most: int, seed: int) -> Ints:
    """Which image each caption is of: one to `most` captions an image, in no order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(images), rng.integers(1, most + 1, images)))


def by_hand(
    text: Floats, image: Floats, image_of: Ints, fold: int, rivals: str
) -> tuple[dict[int, int], dict[int, int]]:
    """0-based ranks by caption and by image, of features of one norm: every pair is looked at."""
    t2i, i2t = {}, {}
    for first in range(0, len(image), fold):
        images = range(first, min(first + fold, len(image)))
        captions = [n for n in range(len(text)) if image_of[n] in images]
        near = {(n, m): int(text[n] @ image[m]) for n in captions for m in images}
        for n in captions:
            own = image_of[n]
            t2i[n] = sum(near[n, m] >= near[n, own] for m in images if m != own)
        for m in images:
            best = max(near[n, m] for n in captions if image_of[n] == m)
            ahead = [image_of[n] for n in captions if image_of[n] != m and near[n, m] >= best]
            i2t[m] = len(set(ahead)) if rivals == "images" else len(ahead)
    return t2i, i2t


def written(values: list[float]) -> float:
    return round(float(np.mean(values)), 2)


@pytest.mark.parametrize("rivals", ["captions", "images"])
@pytest.mark.parametrize("fold", [None, 8, 12])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_figures_are_those_of_counting_by_hand(
    seed: int, fold: int | None, rivals: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "TILE", 4 * 24 * 7)  # pieces that cut an image's captions
    image_of = several_each(24, 6, seed)
    text, image = signs(len(image_of), seed + 10), signs(24, seed + 20)
    text[::2] = image[image_of[::2]]  # half are right, and tie with what is alike
    protocol = Protocol("some", fold=fold, rivals=rivals)  # type: ignore[arg-type]
    found = protocol.rank(text, image, image_of)
    t2i, i2t = by_hand(text, image, image_of, fold or 24, rivals)
    assert found.t2i.tolist() == [t2i[n] for n in range(len(text))]
    assert found.i2t.tolist() == [i2t[m] for m in range(24)]

    ks = with_standard([3])
    assert ks == [1, 3, 5, 10]
    figures = Figures.of(protocol.folds(found), [3])
    size = fold or 24
    for way, ranks, of in (
        ("t2i", t2i, {n: int(image_of[n]) for n in t2i}),
        ("i2t", i2t, {m: m for m in i2t}),
    ):
        folds = [[r for key, r in ranks.items() if of[key] // size == f] for f in range(24 // size)]
        recall = getattr(figures.recall, way)
        for k in ks:
            share = np.mean([sum(r < k for r in each) / len(each) for each in folds])
            assert recall[f"R@{k}"] == round(100 * float(share), 2)
        assert figures.median_rank[way] == written([float(np.median(each)) + 1 for each in folds])
        assert figures.mean_rank[way] == written([float(np.mean(each)) + 1 for each in folds])
    six = [getattr(figures.recall, way)[f"R@{k}"] for way in ("t2i", "i2t") for k in KS]
    assert figures.recall.ar == np.mean(six)  # of 1, 5 and 10, whatever else is asked for
    assert figures.named()["t2i R@3"] == figures.recall.t2i["R@3"]
    assert (figures.recall.images, figures.recall.captions) == (24, len(text))


@pytest.mark.parametrize("seed", range(3))
def test_recall_is_that_of_torchmetrics(seed: int) -> None:
    image_of = several_each(60, 5, seed)
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(60, DIM)).astype(np.float32)
    text = image[image_of] + 1.5 * rng.normal(size=(len(image_of), DIM)).astype(np.float32)
    figures = Figures.of([rank(text, image, image_of)], [7])
    scores = torch.nn.functional.normalize(torch.from_numpy(text), dim=1).double()
    scores = scores @ torch.nn.functional.normalize(torch.from_numpy(image), dim=1).double().T
    right = torch.from_numpy(image_of)[:, None] == torch.arange(60)
    for recall, score, target in (
        (figures.recall.t2i, scores, right),
        (figures.recall.i2t, scores.T, right.T),
    ):
        query = torch.arange(len(score))[:, None].expand_as(score)
        for k in (1, 5, 7, 10):
            hits = RetrievalHitRate(top_k=k)(
                score.flatten(), target.flatten(), indexes=query.flatten()
            )
            assert recall[f"R@{k}"] == round(100 * round(float(hits) * len(score)) / len(score), 2)
    assert 0 < figures.recall.t2i["R@1"] < figures.recall.t2i["R@10"] < 100


def test_other_images_captions_count_once_an_image() -> None:
    image = np.array([[1, 0], [0, 1]], np.float32)
    text = np.array([[1, 1], [1, 0.5], [1, 0.4], [1, 0.3], [-0.5, 1]], np.float32)
    image_of = np.array([0, 1, 1, 1, 1])  # three captions of image 1 are nearer to image 0
    assert rank(text, image, image_of).i2t.tolist() == [3, 0]
    assert rank(text, image, image_of, rivals="images").i2t.tolist() == [1, 0]


def test_one_caption_an_image_ranks_alike_among_captions_and_images() -> None:
    image_of = np.random.default_rng(0).permutation(50)
    text, image = signs(50, 1), signs(50, 2)
    among = [rank(text, image, image_of, rivals=rivals) for rivals in ("captions", "images")]
    assert among[0].i2t.tolist() == among[1].i2t.tolist()


def test_folds_are_consecutive_images_and_know_nothing_of_each_other() -> None:
    image_of = several_each(24, 3, 0)
    text, image = signs(len(image_of), 1), signs(24, 2)
    whole = TINY.rank(text, image, image_of)
    for number, fold in enumerate(TINY.folds(whole)):
        captions = image_of // 8 == number
        alone = rank(text[captions], image[8 * number : 8 * number + 8], image_of[captions] % 8)
        assert fold.t2i.tolist() == alone.t2i.tolist()
        assert fold.i2t.tolist() == alone.i2t.tolist()
        assert fold.image_of.tolist() == alone.image_of.tolist()
    easier = Figures.of(TINY.folds(whole)).recall.ar
    assert easier > Figures.of([rank(text, image, image_of)]).recall.ar


def test_folds_count_the_same_however_many_captions_they_have() -> None:
    image_of = np.array([0] * 9 + [1])
    ranks = Ranks(np.array([0] * 9 + [50]), np.array([0, 50]), image_of)
    assert Figures.of([ranks]).recall.t2i["R@1"] == 90
    assert Figures.of(Protocol("ones", fold=1).folds(ranks)).recall.t2i["R@1"] == 50


def test_a_mask_of_nothing_has_figures_of_nothing() -> None:
    ranks = Ranks(np.array([0, 1]), np.array([0, 1]), np.array([0, 1]))
    figures = Figures.of(TINY.folds(ranks, np.zeros(2, dtype=bool)))
    assert (figures.recall.ar, figures.recall.captions, figures.mean_rank["t2i"]) == (0, 0, 0)


def test_a_protocol_takes_the_first_captions_of_an_image() -> None:
    ids = ["a", "b", "a", "a", "b", "c"]
    assert Protocol("two", each=2).chosen(ids).tolist() == [True, True, True, False, True, True]
    assert FULL.chosen(ids).all()


@pytest.mark.parametrize(
    ("name", "images", "captions"),
    [
        ("multi30k", 1000, 5000),
        ("multi30k", 1000, 1000),
        ("coco-5x1k", 5000, 25_000),
        ("coco-5k", 5000, 25_000),
        ("coco-cn", 1000, 1053),
        ("xtd", 1000, 1000),
        ("xm3600", 3600, 7100),
        ("msrvtt-1ka", 1000, 1000),
        ("paper-coco-cn", 1000, 1053),
        ("full", 7, 9),
    ],
)
def test_protocols_take_the_published_numbers(name: str, images: int, captions: int) -> None:
    protocol_named(name).check("xx", images, captions)
    if name != "full":
        with pytest.raises(
            ValueError, match=f"'{name}' is over .* images, and there are 7 in 'xx'"
        ):
            protocol_named(name).check("xx", 7, captions)


def test_what_is_published_has_a_figure() -> None:
    named = Figures.of([rank(signs(4, 0), signs(4, 1), np.arange(4))]).named()
    for protocol in PROTOCOLS.values():
        assert protocol.published
        assert set(protocol.published) <= set(named)


def test_faults_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="no protocol 'coco'; there are full, multi30k, coco-5x1k"):
        protocol_named("coco")
    with pytest.raises(ValueError, match="1,053 captions, and there are 1,000 in 'zh'"):
        PROTOCOLS["coco-cn"].check("zh", 1000, 1000)
    with pytest.raises(ValueError, match="folds of 8 images, and the 20"):
        TINY.check("de", 20, 20)


# Intervals


def test_one_gallery_is_resampled_as_ranks_are() -> None:
    image_of = several_each(30, 4, 0)
    ranks = rank(signs(len(image_of), 1), signs(30, 2), image_of)
    drawn = resampled([ranks], draws=50, seed=3)
    assert (100 * drawn.reshape(50, 6).mean(1)).tolist() == ranks.resampled(50, 3).tolist()


def test_resampling_is_what_it_was() -> None:
    """Draw by draw as `Ranks.resampled` was first written; sweeps compare figures of it."""
    image_of = several_each(40, 4, 1)
    ranks = rank(signs(len(image_of), 1), signs(40, 2), image_of)
    generator = np.random.default_rng(7)
    captions = np.bincount(image_of, minlength=40)
    for ar in ranks.resampled(30, 7):
        times = np.bincount(generator.integers(40, size=40), minlength=40)
        hits = [
            times @ np.bincount(image_of, ranks.t2i < k, minlength=40) / (times @ captions)
            for k in KS
        ]
        hits += [times @ (ranks.i2t < k).astype(np.float64) / 40 for k in KS]
        assert ar == 100 * np.mean(hits)


def test_intervals_of_folds_are_of_means_over_galleries_drawn_by_themselves() -> None:
    image_of = several_each(24, 4, 2)
    text = signs(24, 5)[image_of] + 2 * signs(len(image_of), 6)
    folds = TINY.folds(TINY.rank(text, signs(24, 5), image_of))
    drawn = resampled(folds, [3], draws=200, seed=5)
    assert drawn.shape == (200, 2, 4)
    generators = [np.random.default_rng(5 + number) for number in range(3)]
    for draw in range(200):
        expected = np.zeros((3, 2, 4))
        for number, (fold, generator) in enumerate(zip(folds, generators, strict=True)):
            images = generator.integers(8, size=8)
            captions = np.concatenate([np.flatnonzero(fold.image_of == m) for m in images])
            for place, k in enumerate((1, 3, 5, 10)):
                expected[number, 0, place] = np.mean(fold.t2i[captions] < k)
                expected[number, 1, place] = np.mean(fold.i2t[images] < k)
        np.testing.assert_allclose(drawn[draw], expected.mean(0), rtol=1e-12)
    found = intervals(drawn, [3])
    assert set(found) == {"AR"} | {f"{way} R@{k}" for way in ("t2i", "i2t") for k in (1, 3, 5, 10)}
    low, high = np.percentile(100 * drawn[:, 1, 1], [2.5, 97.5])
    assert found["i2t R@3"] == (round(low, 2), round(high, 2))
    low, high = np.percentile(100 * drawn[:, :, [0, 2, 3]].mean((1, 2)), [2.5, 97.5])
    assert found["AR"] == pytest.approx((low, high), abs=0.006)
    assert found["AR"][0] < Figures.of(folds).recall.ar < found["AR"][1]


# A table of several languages


def table_of(languages: dict[str, Ints]) -> pa.Table:
    rows = [
        {"image_id": f"i{image}", "language": language, "caption": f"{language} {number}"}
        for language, image_of in languages.items()
        for number, image in enumerate(image_of)
    ]
    return pa.Table.from_pylist(rows)


def test_languages_are_measured_by_themselves_and_their_mean_is_of_their_figures() -> None:
    of = {"de": several_each(24, 3, 0), "fr": several_each(24, 1, 1)}
    image = signs(24, 2)
    text = {language: signs(len(image_of), 3) for language, image_of in of.items()}
    for language, image_of in of.items():
        text[language][::2] = image[image_of[::2]]
    gallery = Gallery([f"i{m}" for m in range(24)], image)
    found = [
        evaluate(
            lambda texts, language=language: text[language][[int(t.split()[1]) for t in texts]],
            language,
            table_of(of),
            gallery,
            protocol=TINY,
        )
        for language in of
    ]
    result = printed(found, with_intervals=True)
    assert [each["language"] for each in result["languages"]] == ["de", "fr"]
    de, fr = result["languages"]
    for way in ("t2i", "i2t"):
        for name in ("R@1", "R@5", "R@10"):
            assert result["mean"][way][name] == written([de[way][name], fr[way][name]])
        for name in ("median rank", "mean rank"):
            assert result["mean"][name][way] == written([de[name][way], fr[name][way]])
    assert result["mean"]["captions"] == len(of["de"]) + len(of["fr"])
    assert result["mean"]["intervals"]["AR"][0] <= result["mean"]["AR"]
    assert de["published"] == {"AR": de["AR"]}
    order = {name: place for place, name in enumerate(dict.fromkeys(of["de"].tolist()))}
    image_of = np.array([order[m] for m in of["de"]])
    t2i, i2t = by_hand(text["de"], image[list(order)], image_of, 8, "captions")
    assert found[0].ranks.t2i.tolist() == [t2i[n] for n in range(len(image_of))]
    assert found[0].ranks.i2t.tolist() == [i2t[m] for m in range(24)]


def test_galleries_are_cut_in_the_order_of_the_table() -> None:
    image_of = np.array([5, 5, 2, 0, 2, 1, 3, 4])
    image = np.eye(6, dtype=np.float32)
    text = image[[2, 5, 2, 0, 5, 1, 1, 4]]
    found = evaluate(
        lambda texts: text[[int(t.split()[1]) for t in texts]],
        "de",
        table_of({"de": image_of}),
        Gallery([f"i{m}" for m in range(6)], image),
        protocol=Protocol("threes", fold=3),
    )
    # Galleries: images 5, 2, 0 and images 1, 3, 4. The seventh caption is of 3 and means 1.
    assert [len(fold.t2i) for fold in found.folds()] == [5, 3]
    assert found.ranks.t2i.tolist() == [2, 0, 0, 0, 2, 0, 2, 0]


def test_a_protocol_measures_its_first_captions_and_refuses_other_numbers() -> None:
    image_of = np.array([0, 0, 0, 1, 1])
    image = np.eye(2, dtype=np.float32)
    gallery = Gallery(["i0", "i1"], image)
    seen: list[str] = []

    def encode(texts: object) -> Floats:
        seen.extend(texts)  # type: ignore[call-overload]
        return image[[0, 0, 1, 1]]

    protocol = Protocol("two", each=2, images=2, captions=4)
    found = evaluate(encode, "de", table_of({"de": image_of}), gallery, protocol=protocol)
    assert seen == ["de 0", "de 1", "de 3", "de 4"]
    assert found.as_dict()["AR"] == 100
    with pytest.raises(ValueError, match="over 9 images, and there are 2 in 'de'"):
        evaluate(
            encode, "de", table_of({"de": image_of}), gallery, protocol=replace(protocol, images=9)
        )
    assert len(seen) == 4  # refused before anything was encoded


# Memory


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Floats, Floats, Ints]:
    """20,000 captions (10 MB) and 4,000 images (2 MB), on disk."""
    rng = np.random.default_rng(0)
    maps = []
    for name, count in (("text", 20_000), ("image", 4_000)):
        made = np.memmap(tmp_path / name, np.float32, "w+", shape=(count, 128))
        made[:] = rng.normal(size=made.shape)
        made.flush()
        maps.append(np.memmap(tmp_path / name, np.float32, "r", shape=(count, 128)))
    return maps[0], maps[1], np.arange(20_000) // 5


def peak(work: Iterator[object]) -> int:
    """Bytes that Python and numpy had at most while an iterator ran."""
    tracemalloc.start()
    try:
        for _ in work:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rivals", ["captions", "images"])
def test_neither_scores_nor_features_are_in_memory_at_once(
    mapped: tuple[Floats, Floats, Ints], rivals: retrieval.Rivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "TILE", 1 << 20)
    text, image, image_of = mapped
    images, numbers = image.nbytes, 5 * 8 * len(text)
    most = peak(rank(text, image, image_of, rivals=rivals) for _ in range(1))
    assert most < images + numbers + (3 << 20) < text.nbytes  # the whole scores are 320 MB
    folds = Protocol("four", fold=1000, rivals=rivals)
    of_folds = peak(folds.rank(text, image, image_of) for _ in range(1))
    assert of_folds < images / 4 + 2 * numbers + (3 << 20) < text.nbytes


def test_parts_and_maps_rank_as_arrays_do(mapped: tuple[Floats, Floats, Ints]) -> None:
    text, image = np.array(mapped[0][:300]), np.array(mapped[1][:60])
    image_of = mapped[2][:300]
    expected = rank(text, image, image_of)
    order = np.random.default_rng(1).permutation(60)
    back: npt.NDArray[np.int64] = np.argsort(order)
    for found in (
        rank(mapped[0][:300], mapped[1][:60], image_of),
        rank(Subset(mapped[0], np.arange(300)), Subset(mapped[1], order), back[image_of]),
    ):
        assert found.t2i.tolist() == expected.t2i.tolist()
    assert found.i2t[back].tolist() == expected.i2t.tolist()
    done: list[int] = []
    rank(text, image, image_of, progress=done.append)
    assert sum(done) == 600
