"""Promises of mla_ray.data.feature_store."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from upath import UPath

from mla_ray.data import feature_store as module
from mla_ray.data.blocks import ScratchTable, cut
from mla_ray.data.feature_store import (
    BATCH,
    Features,
    FeatureStore,
    Kind,
    encode_images,
    encode_texts,
)
from mla_ray.data.keys import hashes, key_of
from mla_ray.model.batches import MAX_TOKENS
from mla_ray.model.native import Native
from mla_ray.training import encode_features
from mla_ray.training.encode_features import Contents, Encoders, fill


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(UPath(tmp_path), "a" * 64, "text")


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


def test_texts_of_as_many_tokens_share_a_batch(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These have the same number of characters."""
    monkeypatch.setattr(module, "TOKENIZED", 8)
    texts = ["red boat", "umbrella"] * 8
    two, one, *_ = (native.text.english_end(native.tokenize(texts)) + 1).tolist()
    assert one < two < native.text.context_length
    monkeypatch.setitem(MAX_TOKENS, "cpu", 4 * two)
    shapes: list[tuple[int, ...]] = []
    hook = native.text.token_embedding.register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape))
    )
    with hook:
        encode_texts(native, texts)
    assert shapes == [(4, two), (4, one)] * 2


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


def keys_of(*names: str) -> list[str]:
    return [key_of(name) for name in names]


def put(store: FeatureStore, names: str, features: Features, prefix: str = "") -> None:
    store.write(keys_of(*names), features, [None] * len(names), prefix)


def test_what_was_written_is_read_in_the_order_asked(store: FeatureStore) -> None:
    first, second = rows(3), rows(2, seed=1)
    put(store, "abc", first)
    put(store, "de", second)
    assert set(store.keys()) == set(keys_of(*"abcde"))
    read = store.read(keys_of(*"eace"))
    assert read.dtype == np.float32
    assert np.array_equal(read, np.stack([second[1], first[0], first[2], second[1]]))
    again = FeatureStore(store.folder.parents[1], "a" * 64, "text")
    assert np.array_equal(again.read(keys_of("b")), first[1:2])


def test_a_missing_key_is_a_keyerror_that_names_it(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match="holds no features"):
        store.read(keys_of("a"))
    put(store, "a", rows(1))
    with pytest.raises(KeyError, match=rf"2 keys, e\.g\. {key_of('b')}"):
        store.read(keys_of(*"bac"))


def test_what_another_process_wrote_since_is_found(store: FeatureStore) -> None:
    put(store, "a", rows(1))
    store.read(keys_of("a"))
    put(FeatureStore(store.folder.parents[1], "a" * 64, "text"), "b", rows(1, seed=1))
    assert np.array_equal(store.read(keys_of("b")), rows(1, seed=1))


def test_only_parts_that_may_hold_a_key_are_read(store: FeatureStore) -> None:
    names = [str(number) for number in range(400)]
    by_half: dict[str, list[str]] = {"0": [], "1": []}
    for name in names:
        by_half[f"{int(hashes(keys_of(name))[0]):064b}"[0]].append(name)
    for prefix, of_half in by_half.items():
        store.write(keys_of(*of_half), rows(len(of_half)), [None] * len(of_half), prefix)
    (lower,) = store.folder.glob("b0-*")
    (upper,) = store.folder.glob("b1-*")
    upper.write_bytes(b"no Parquet file: whoever opens it fails")
    assert np.array_equal(store.read(keys_of(*by_half["0"])), rows(len(by_half["0"])))
    assert set(store.keys("01")) == set(keys_of(*by_half["0"]))
    lower.write_bytes(b"")
    with pytest.raises(pa.ArrowInvalid):
        store.read(keys_of(by_half["0"][0]))


def test_a_key_that_could_not_be_encoded_has_a_reason_and_no_feature(store: FeatureStore) -> None:
    store.write(keys_of("a", "b"), rows(2), [None, "is broken"], "")
    assert store.keys() == {key_of("a"): None, key_of("b"): "is broken"}
    read = store.read(keys_of("b", "a"))
    assert np.isnan(read[0]).all()
    assert np.array_equal(read[1], rows(2)[0])


def test_of_two_parts_that_hold_a_key_all_read_the_same(store: FeatureStore) -> None:
    put(store, "a", rows(1))
    put(store, "ab", rows(2, seed=1))
    found = [
        FeatureStore(store.folder.parents[1], "a" * 64, "text").read(keys_of("a", "b"))
        for _ in range(3)
    ]
    assert all(np.array_equal(found[0], other) for other in found)


def test_an_unfinished_part_is_not_there(store: FeatureStore) -> None:
    put(store, "a", rows(1))
    (part,) = store.folder.iterdir()
    (store.folder / "b0123.tmp").write_bytes(part.read_bytes()[:50])
    assert set(store.keys()) == {key_of("a")}
    assert np.array_equal(store.read(keys_of("a")), rows(1))


def test_a_write_leaves_whole_parts_only(store: FeatureStore) -> None:
    put(store, "a", rows(1))
    put(store, "b", rows(1))
    parts = sorted(Path(store.folder).iterdir())
    assert [part.suffix for part in parts] == [".parquet"] * 2
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 2


def test_natives_and_kinds_do_not_mix(tmp_path: Path) -> None:
    stores = [
        FeatureStore(UPath(tmp_path), print_ * 64, kind)
        for print_ in ("a", "b")
        for kind in ("text", "image")
    ]
    for seed, store in enumerate(stores):
        assert store.keys() == {}
        put(store, "a", rows(1, seed))
    for seed, store in enumerate(stores):
        assert np.array_equal(store.read(keys_of("a")), rows(1, seed))


# --- reasons, decoding, and the rule of before --------------------------------------------------


@pytest.mark.parametrize("reason_first", [True, False])
def test_a_feature_goes_before_a_reason_whatever_the_order_of_parts(
    store: FeatureStore, reason_first: bool
) -> None:
    """Parts are read by name, and names are random."""
    store.write(keys_of("a", "b"), rows(2), ["is broken", "is broken"], "")
    put(store, "a", rows(1, seed=1))
    parts = {pq.read_metadata(part).num_rows: part for part in Path(store.folder).iterdir()}
    parts[2].rename(parts[2].with_name("b-0.parquet" if reason_first else "b-2.parquet"))
    parts[1].rename(parts[1].with_name("b-1.parquet"))
    store.refresh()
    assert store.keys() == {key_of("a"): None, key_of("b"): "is broken"}
    read = store.read(keys_of("b", "a"))
    assert np.isnan(read[0]).all()
    assert np.array_equal(read[1:], rows(1, seed=1))


def test_another_decoding_is_another_folder_of_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for decoding, folders in ((1, ["image", "text"]), (2, ["image-2", "text"])):
        monkeypatch.setattr(module, "DECODING", decoding)
        stores = [FeatureStore(UPath(tmp_path), "a" * 64, kind) for kind in ("image", "text")]
        assert [store.folder.name for store in stores] == folders
        for seed, store in enumerate(stores):
            if not store.keys():
                put(store, "a", rows(1, 10 * decoding + seed))
    assert np.array_equal(stores[0].read(keys_of("a")), rows(1, 20))
    assert np.array_equal(stores[1].read(keys_of("a")), rows(1, 11))


def test_a_store_by_the_rule_of_before_is_read_and_told_and_written_beside(
    tmp_path: Path, recognitions: list[str]
) -> None:
    old = FeatureStore(UPath(tmp_path), "1" * 64, "text")
    old.write(keys_of("a", "b"), rows(2), [None, "is broken"], "")
    for _ in range(2):
        store = FeatureStore(UPath(tmp_path), "2" * 64, "text", "1" * 64)
        assert store.keys() == {key_of("a"): None, key_of("b"): "is broken"}
        assert np.array_equal(store.read(keys_of("a")), rows(1))
    (said,) = recognitions
    assert said.startswith(f"{tmp_path / ('1' * 16)}: has the fingerprint of mla-ray 0.1.0")
    assert "Delete it if" in said
    put(store, "b", rows(1, seed=1))
    assert np.array_equal(store.read(keys_of("b")), rows(1, seed=1))
    assert old.keys() == {key_of("a"): None, key_of("b"): "is broken"}
    assert FeatureStore(UPath(tmp_path), "2" * 64, "text").keys() == {key_of("b"): None}


def test_a_store_by_the_rule_of_before_is_of_the_first_native_that_claims_it(
    tmp_path: Path,
) -> None:
    """To that rule two natives were one: a native whose configuration was mended is the other."""
    FeatureStore(UPath(tmp_path), "1" * 64, "image").claim()  # nothing to claim
    put(FeatureStore(UPath(tmp_path), "1" * 64, "image"), "a", rows(1))
    first, mended = (FeatureStore(UPath(tmp_path), n * 64, "image", "1" * 64) for n in "23")
    assert set(mended.keys()) == set(keys_of("a"))
    first.claim()
    mended.claim()
    for store in (first, mended):
        store.refresh()
    assert set(first.keys()) == set(keys_of("a"))
    assert mended.keys() == {}
    with pytest.raises(KeyError):
        mended.read(keys_of("a"))


def contents_of(folder: Path, kind: Kind, contents: list[bytes], limit: int) -> Contents:
    """Blocks of contents as `mla_ray.training.prepare` writes them, rows counted from 1."""
    folder.mkdir()
    count = len(contents)
    table = pa.table(
        {
            "key": [key_of(content) for content in contents],
            "content": pa.array(contents, pa.large_binary()),
            "uri": pa.nulls(count, pa.string()),
            "file": pa.array([0] * count, pa.int32()),
            "row": range(1, count + 1),
        }
    )
    spool = ScratchTable(folder / "spool", table.schema)
    spool.add(table)
    blocks = []
    for prefix, block in cut(spool, limit):
        pq.write_table(block.read(), folder / f"b{prefix}.parquet")
        blocks.append((prefix, block.rows))
    return Contents(UPath(folder), kind, blocks, ["captions.parquet"])


@pytest.mark.slow
def test_a_store_is_filled_by_as_many_actors_as_there_are_cores(
    ray_cluster: None, native_folder: Path, tmp_path: Path
) -> None:
    """More blocks than cores: nothing may wait for a core that an encoder holds."""
    native = Native.load(str(native_folder))
    texts = [f"a dog and {number} cats" for number in range(1500)]
    store = FeatureStore(UPath(tmp_path / "store"), native.fingerprint, "text")
    contents = contents_of(
        tmp_path / "contents", "text", [text.encode() for text in texts], limit=250
    )
    assert len(contents.blocks) > 4
    seen: list[tuple[Kind, int, int]] = []

    def told(kind: Kind, rows: int, computed: int) -> None:
        seen.append((kind, rows, computed))

    actors = Encoders(most=2)
    assert fill({"text": store}, native, [contents], told, actors).computed == 1500
    assert sum(rows for _, rows, _ in seen) == sum(new for _, _, new in seen) == 1500
    assert {kind for kind, _, _ in seen} == {"text"}
    asked = texts[::500]
    expected = encode_texts(native, asked)
    found = store.read(keys_of(*asked))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # A block that is lost is all that is done again.
    prefix, lost = contents.blocks[1]
    next(store.folder.glob(f"b{prefix}-*")).unlink()
    assert fill({store.kind: store}, native, [contents], encoders=actors).computed == lost
    assert fill({store.kind: store}, native, [contents], encoders=actors).computed == 0


@pytest.fixture(params=["here", pytest.param("by actors", marks=pytest.mark.slow)])
def encoders(request: pytest.FixtureRequest) -> Encoders:
    """Where `fill` encodes: in this process, or with Ray."""
    if request.param == "here":
        return Encoders(most=0)
    request.getfixturevalue("ray_cluster")
    return Encoders(most=2)


def test_little_is_encoded_here_if_this_process_has_the_only_nodes_cores(
    ray_cluster: None, native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # as many as the cluster has
    is_sooner = encode_features._is_sooner_here
    few = encode_features.LITTLE // sum(weight.numel() for weight in native.model.parameters())
    assert is_sooner(few, native, Encoders())
    assert not is_sooner(few + 1, native, Encoders())
    assert not is_sooner(few, native, Encoders(most=1))
    assert not is_sooner(few, native, Encoders(gpus=0.5))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not is_sooner(few, native, Encoders())
    assert is_sooner(few + 1, native, Encoders(most=0))


def test_a_bad_image_costs_its_row_and_is_told_every_time(
    encoders: Encoders, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    native = Native.load(str(native_folder))
    store = FeatureStore(UPath(tmp_path / "store"), native.fingerprint, "image")
    images = [*pngs[:2], pngs[2][:60], b"text", *pngs[3:5]]
    contents = contents_of(tmp_path / "contents", "image", images, limit=4)
    for computed in (6, 0):
        filled = fill({store.kind: store}, native, [contents], encoders=encoders)
        assert (filled.computed, filled.failed) == (computed, 2)
        failures = sorted(filled.failures, key=lambda failure: failure.row)
        assert [(f.file, f.row) for f in failures] == [("captions.parquet", row) for row in (3, 4)]
        assert failures[0].reason.startswith("is cut off")
    found = store.read([key_of(content) for content in (pngs[4], pngs[0], b"text")])
    np.testing.assert_allclose(found[:2], encode_images(native, [pngs[4], pngs[0]]), atol=1e-5)
    assert np.isnan(found[2]).all()
    assert len(list(Path(store.folder).iterdir())) == len(contents.blocks), "nothing was new"


def test_what_was_refused_is_tried_again_at_each_fill(
    encoders: Encoders, native_folder: Path, pngs: list[bytes], tmp_path: Path
) -> None:
    """As after an upgrade that reads more: one is readable now, one is not, one is gone."""
    native = Native.load(str(native_folder))
    store = FeatureStore(UPath(tmp_path / "store"), native.fingerprint, "image")
    broken = pngs[1][:60]
    (tmp_path / "gone.png").write_bytes(pngs[2])
    contents = contents_of(tmp_path / "contents", "image", [pngs[0], broken], limit=9)
    place = tmp_path / "contents" / "b.parquet"
    table = pq.read_table(place)
    gone = {"key": key_of(pngs[2]), "content": None, "uri": str(tmp_path / "gone.png")}
    row = pa.Table.from_pylist([gone | {"file": 0, "row": 3}], table.schema)
    pq.write_table(pa.concat_tables([table, row]), place)
    (tmp_path / "gone.png").unlink()
    keys = [key_of(content) for content in (pngs[0], broken, pngs[2])]
    no_feature = np.zeros((3, native.dim), np.float32)
    store.write(keys, no_feature, ["was none of our formats", "is cut off", "was unknown"], "")
    filled = fill({store.kind: store}, native, [contents], encoders=encoders)
    assert (filled.computed, filled.failed) == (2, 2)  # a feature, and a reason that is new
    have = store.keys()
    assert have[keys[0]] is None
    assert have[keys[2]] == "was unknown"
    found = store.read(keys)
    np.testing.assert_allclose(found[:1], encode_images(native, [pngs[0]]), atol=1e-5)
    assert np.isnan(found[1:]).all()
    told = {failure.row: failure.reason for failure in filled.failures}
    assert told[2].startswith("is cut off: 99")
    assert told[3] == "was unknown"
