"""Promises of mla_ray.evaluation.evaluation."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from mla_ray.data.feature_store import Features, encode_images, encode_texts
from mla_ray.evaluation import evaluation
from mla_ray.evaluation.evaluation import BATCH, Gallery, evaluate, printed
from mla_ray.evaluation.recall import rank
from mla_ray.model.native import Native
from tests.support.natives import MakePack

DIM = 16


@pytest.fixture
def captions(pngs: list[bytes], corpus: dict[str, list[str]]) -> pa.Table:
    """German: two captions of images 0 to 5. English: one of images 3 to 8. Rows in no order."""
    rows = [
        {"image_id": f"i{n % 6}", "image": pngs[n % 6], "language": "de", "caption": caption}
        for n, caption in enumerate([*corpus["de"], *(f"{text} hier" for text in corpus["de"])])
    ] + [
        {"image_id": f"i{n + 3}", "image": pngs[n + 3], "language": "en", "caption": caption}
        for n, caption in enumerate(corpus["en"])
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order])


@pytest.fixture
def gallery(native: Native, captions: pa.Table) -> Gallery:
    return Gallery.of(native, captions)


def test_a_gallery_holds_each_image_once(
    native: Native, captions: pa.Table, gallery: Gallery, pngs: list[bytes]
) -> None:
    assert sorted(gallery.ids) == [f"i{n}" for n in range(9)]
    expected = encode_images(native, [pngs[int(image_id[1:])] for image_id in gallery.ids])
    np.testing.assert_allclose(gallery.features, expected, atol=1e-5)
    done: list[int] = []
    Gallery.of(native, captions, done.append)
    assert sum(done) == 9


def test_a_pack_scores_what_retrieval_by_hand_says(
    make_pack: MakePack, captions: pa.Table, gallery: Gallery
) -> None:
    pack = make_pack("de")
    found = evaluate(pack.encode_text, "de", captions, gallery)
    rows = [row for row in captions.to_pylist() if row["language"] == "de"]
    of = {image_id: index for index, image_id in enumerate(gallery.ids)}
    images = sorted({row["image_id"] for row in rows})
    features = gallery.features[[of[image_id] for image_id in images]]
    text = pack.encode_text([row["caption"] for row in rows]).numpy()
    image_of = np.array([images.index(row["image_id"]) for row in rows])
    expected = rank(text, features, image_of)
    said = {"language": "de", "missing_features": {"captions": 0, "images": 0}}
    assert found.as_dict() == said | expected.recall().as_dict()
    assert (found.as_dict()["images"], found.as_dict()["captions"]) == (6, 12)
    assert found.captions == [row["caption"] for row in rows]
    assert found.image_ids == [row["image_id"] for row in rows]
    assert found.ranks.t2i.tolist() == expected.t2i.tolist()
    mask = np.array(["hier" in text for text in found.captions])
    assert found.as_dict(mask) == said | expected.recall(mask).as_dict()
    assert found.as_dict(mask)["captions"] == 6


def test_captions_with_unknown_tokens_are_counted(
    make_pack: MakePack, native: Native, captions: pa.Table, gallery: Gallery
) -> None:
    pack = make_pack("de")
    rows = captions.to_pylist()
    german = [row for row in rows if row["language"] == "de"]
    for row, said in zip(german, ["犬", "犬", "Hund 犬"], strict=False):
        row["caption"] = said
    table = pa.Table.from_pylist(rows, captions.schema)
    found = evaluate(pack.encode_text, "de", table, gallery, unknown=pack.unknown_tokens)
    known = set(pack.tokenizer.tokens.tolist())
    tokens = [pack.tokenizer.tokenizer.encode(row["caption"]).ids for row in german]
    some = sum(not known >= set(ids) for ids in tokens)
    assert 3 <= some < 12
    expected = {"some": round(some / 12, 4), "all": round(2 / 12, 4)}
    assert found.unknown() == expected
    (first, second) = (printed([found]), printed([found, found]))
    assert first["unknown_tokens"] == expected
    assert [row["unknown_tokens"] for row in second["languages"]] == [expected] * 2
    without = evaluate(pack.encode_text, "de", table, gallery)
    assert printed([without]) == {k: v for k, v in first.items() if k != "unknown_tokens"}
    english = partial(encode_texts, native)
    found = evaluate(english, "en", table, gallery, unknown=native.unknown_tokens)
    assert printed([found])["unknown_tokens"] == {"some": 0.0, "all": 0.0}


def test_the_native_is_scored_on_the_rows_of_its_language(
    native: Native, captions: pa.Table, gallery: Gallery
) -> None:
    seen: list[str] = []

    def encode(texts: Sequence[str]) -> Features:
        seen.extend(texts)
        return encode_texts(native, texts)

    done: list[int] = []
    found = evaluate(encode, "en", captions, gallery, done.append).as_dict()
    rows = [row for row in captions.to_pylist() if row["language"] == "en"]
    assert seen == [row["caption"] for row in rows]
    assert sum(done) == found["captions"] == found["images"] == 6


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_has_no_feature_is_counted_and_the_first_is_named(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    warn = lambda message, *of: told.append(message % of)  # noqa: E731
    monkeypatch.setattr(evaluation.log, "warning", warn)
    features = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)
    ids = [f"i{n // 2}" for n in range(60)]
    rows = {"image_id": ids, "language": ["sw"] * 60, "caption": [f"text {n}" for n in range(60)]}
    images, texts = features[::2].copy(), np.repeat(features[::2], 2, 0)
    images[[4, 9]] = value
    texts[[7, 30, 31]] = value

    def encode(batch: Sequence[str]) -> Features:
        return texts[[int(text.split()[1]) for text in batch]]

    found = evaluate(encode, "sw", pa.table(rows), Gallery([f"i{n}" for n in range(30)], images))
    lost = {"captions": 3, "images": 2}
    assert found.as_dict()["missing_features"] == lost
    assert printed([found])["missing_features"] == lost
    assert printed([found, found])["languages"][1]["missing_features"] == lost
    assert [line[:13] for line in told] == ["3 captions ha", "2 images have"]
    assert ["the first is 'text 7'" in told[0], "the first is 'i4'" in told[1]] == [True, True]
    # Of 60 captions 3 have none, 4 have an image without one; of 30 images these, and one whose
    # captions both have none.
    assert found.as_dict()["t2i"]["R@10"] == round(100 * 53 / 60, 2)
    assert found.as_dict()["i2t"]["R@10"] == 90
    first = np.arange(60) < 20
    assert found.as_dict(first)["missing_features"] == {"captions": 1, "images": 2}


def test_a_perfect_encoder_scores_100_whatever_the_order_of_the_gallery() -> None:
    count = BATCH + 20
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, DIM)).astype(np.float32)
    table = pa.table(
        {
            "image_id": [f"i{n}" for n in range(count)],
            "language": ["sw"] * count,
            "caption": [f"{n}" for n in range(count)],
        }
    )
    order = rng.permutation(count)
    gallery = Gallery([f"i{n}" for n in order], features[order])
    found = evaluate(lambda texts: features[[int(t) for t in texts]], "sw", table, gallery)
    assert found.as_dict()["AR"] == 100.0
    shifted = evaluate(
        lambda texts: features[[(int(t) + 1) % count for t in texts]], "sw", table, gallery
    )
    assert shifted.as_dict()["t2i"]["R@1"] == 0.0
