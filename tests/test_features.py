"""Promises of mla_ray.features that need no cluster."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mla_ray.features import (
    BATCH,
    Features,
    FeatureStore,
    distinct,
    encode_images,
    encode_texts,
    fill,
    key_of,
)
from mla_ray.native import Native


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path, "a" * 64, "text")


@pytest.fixture
def texts() -> list[str]:
    """More than one batch, of lengths in no order, some longer than the context."""
    words = [
        "a",
        "dog",
        "two",
        "red",
        "umbrella",
        "cat",
        "sun",
        "grapes",
        "boat",
        "harbour",
        "snow",
    ]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(BATCH + 44)]


def rows(count: int, seed: int = 0) -> Features:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["native", "bidirectional"])
def test_texts_have_the_features_of_the_native_at_full_length(
    request: pytest.FixtureRequest, texts: list[str], name: str
) -> None:
    native: Native = request.getfixturevalue(name)
    done: list[int] = []
    features = encode_texts(native, texts, done.append)
    assert features.dtype == np.float32
    assert sum(done) == len(texts)
    with torch.inference_mode():
        expected = native.encode_text(native.tokenize(texts)).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5)
    order = np.random.default_rng(1).permutation(len(texts))
    shuffled = encode_texts(native, [texts[i] for i in order])
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)


def test_no_texts_have_no_features(native: Native) -> None:
    assert encode_texts(native, []).shape == (0, 32)
    assert encode_images(native, []).shape == (0, 32)


def test_images_have_the_features_of_the_native(native: Native, pngs: list[bytes]) -> None:
    pixels = [native.preprocess(Image.open(BytesIO(data))) for data in pngs]
    with torch.inference_mode():
        expected = native.encode_image(torch.stack(pixels)).numpy()
    np.testing.assert_allclose(encode_images(native, pngs), expected, atol=1e-5)
    backwards = encode_images(native, pngs[::-1])
    np.testing.assert_allclose(backwards, expected[::-1], atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_images_of_any_format_and_mode_are_encoded(native: Native) -> None:
    images = []
    for mode, form in (("RGBA", "PNG"), ("L", "PNG"), ("P", "GIF"), ("RGB", "JPEG")):
        buffer = BytesIO()
        Image.new(mode, (50, 20)).save(buffer, form)
        images.append(buffer.getvalue())
    features = encode_images(native, images)
    assert features.shape == (4, 32)
    assert np.isfinite(features).all()


def test_a_key_tells_contents_apart() -> None:
    contents: list[str | bytes] = ["", "a", "A", "a ", "b", "ä", "a\u0308", b"\x00", b"\x00\x00"]
    keys = [key_of(content) for content in contents]
    assert len(set(keys)) == len(contents)
    assert {len(key) for key in keys} == {32}
    assert keys == [key_of(content) for content in contents]
    assert key_of("a") == "27c35e6e9373877f29e562464e46497e"  # a store outlives a version


def test_distinct_contents_are_listed_once() -> None:
    table = distinct(iter(["b", "a", "b", "a"]))
    assert table["content"].to_pylist() == ["b", "a"]
    assert table["key"].to_pylist() == [key_of("b"), key_of("a")]


def test_what_was_written_is_read_in_the_order_asked(store: FeatureStore) -> None:
    first, second = rows(3), rows(2, seed=1)
    store.write(["a", "b", "c"], first)
    store.write(["d", "e"], second)
    assert store.keys() == {"a", "b", "c", "d", "e"}
    read = store.read(["e", "a", "c", "e"])
    assert read.dtype == np.float32
    assert np.array_equal(read, np.stack([second[1], first[0], first[2], second[1]]))
    again = FeatureStore(store.folder.parents[1], "a" * 64, "text")
    assert np.array_equal(again.read(["b"]), first[1:2])


def test_a_missing_key_is_a_keyerror_that_names_it(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match="holds no features"):
        store.read(["a"])
    store.write(["a"], rows(1))
    with pytest.raises(KeyError, match=r"2 keys, e\.g\. b"):
        store.read(["b", "a", "c"])


def test_an_unfinished_part_is_not_there(store: FeatureStore) -> None:
    store.write(["a"], rows(1))
    (part,) = store.folder.iterdir()
    (store.folder / "0123.tmp").write_bytes(part.read_bytes()[:50])
    assert store.keys() == {"a"}
    assert np.array_equal(store.read(["a"]), rows(1))


def test_a_write_leaves_whole_parts_only(store: FeatureStore) -> None:
    store.write(["a"], rows(1))
    store.write(["b"], rows(1))
    parts = sorted(store.folder.iterdir())
    assert [part.suffix for part in parts] == [".parquet"] * 2
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 2


def test_natives_and_kinds_do_not_mix(tmp_path: Path) -> None:
    stores = [
        FeatureStore(tmp_path, print_ * 64, kind)
        for print_ in ("a", "b")
        for kind in ("text", "image")
    ]
    for seed, store in enumerate(stores):
        assert store.keys() == set()
        store.write(["same"], rows(1, seed))
    for seed, store in enumerate(stores):
        assert np.array_equal(store.read(["same"]), rows(1, seed))


def test_a_store_is_filled_by_as_many_actors_as_there_are_cores(
    ray_cluster: None, native_folder: Path, tmp_path: Path
) -> None:
    """More blocks than cores: nothing may wait for a core that an encoder holds."""
    native = Native.load(str(native_folder))
    texts = [f"a dog and {number} cats" for number in range(3000)]
    store = FeatureStore(tmp_path, native.fingerprint, "text")
    seen: list[int] = []
    assert fill(store, str(native_folder), distinct(iter(texts)), seen.append) == 3000
    assert sum(seen) == 3000
    asked = texts[::500]
    expected = encode_texts(native, asked)
    found = store.read([key_of(text) for text in asked])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert fill(store, str(native_folder), distinct(iter(texts))) == 0
