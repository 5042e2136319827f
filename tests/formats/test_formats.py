"""What earlier versions wrote is read: packs, indexes, runs, prepared tables and features."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from mla_ray.data.corpus import Corpus
from mla_ray.data.feature_store import FeatureStore
from mla_ray.data.keys import key_of
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.ingest import (
    entries_of,
    index_captions,
    space_of,
    sync,
)
from mla_ray.model.native import Native
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.storage import as_path
from mla_ray.training.acquisition import begin, encode, job_of
from mla_ray.training.acquisition_learner import train
from mla_ray.training.encode_features import Encoders
from mla_ray.training.prepare import read_prepared
from tests.formats.make import CONFIG, ENGLISH, GERMAN, SOURCE

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.xz"))
CORPUS = Corpus("de", ["tables/pairs.parquet"], "tables/captions.parquet")


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def kept(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder as the earlier version left it; tests run in it."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_pack_says_what_it_said(kept: Path) -> None:
    native, expected = Native.load("native"), load_file(kept / "expected.safetensors")
    english = native.encode_text(native.tokenize(ENGLISH)).float().numpy()
    np.testing.assert_allclose(english, expected["english"], atol=1e-5)
    german = LanguagePack.load("pack", native).encode_text(GERMAN).numpy()
    np.testing.assert_allclose(german, expected["german"], atol=1e-5)


def test_an_index_finds_what_it_held(kept: Path) -> None:
    native = Native.load("native")
    pack, space = LanguagePack.load("pack", native), space_of(native)
    captions = pq.read_table("tables/captions.parquet").to_pylist()
    with CaptionIndex.open("edge:index", space, IMAGES, create=False) as index:
        assert index.count() == 12
    with CaptionIndex.open("edge:index", space, CAPTIONS, create=False) as index:
        assert index.count() == 12
        for row in captions:
            vector = pack.encode_text([row["caption"]])[0].numpy()
            entries = [hit.entry for hit in index.search(vector, 2)]  # a text and its capitals
            assert (row["caption"], row["image_id"]) in [(e.caption, e.image_id) for e in entries]
            assert {(e.language, e.source) for e in entries} == {("de", SOURCE)}


def test_an_index_is_written_to_without_doubles(kept: Path) -> None:
    """The same table again replaces its entries, another with the same ids is kept beside them."""
    native = Native.load("native")
    pack, space = LanguagePack.load("pack", native), space_of(native)
    captions = pq.read_table("tables/captions.parquet")
    index_captions("edge:index", native, {"de": pack}, captions.slice(0, 5), SOURCE)
    index_captions("edge:index", native, {"de": pack}, captions, "other")
    ids = set(captions["image_id"].to_pylist())
    for collection in (IMAGES, CAPTIONS):
        with CaptionIndex.open("edge:index", space, collection, create=False) as index:
            held = [(entry.source, entry.image_id) for entry in index.entries()]
            assert sorted(held) == sorted(
                (source, id_) for source in (SOURCE, "other") for id_ in ids
            )
    kept_keys = {entry.key for entry in entries_of(captions.slice(0, 7), SOURCE)}
    removed = sync("edge:index", space, SOURCE, kept_keys)
    assert removed == {"images": 5, "captions": 5, "pictures": 0}
    with CaptionIndex.open("edge:index", space, CAPTIONS, create=False) as index:
        assert index.count() == 7 + 12


def test_frozen_features_are_found(kept: Path) -> None:
    native = Native.load("native")
    store = FeatureStore(as_path("features"), native.fingerprint, "text", native.fingerprint_v1)
    found = store.read([key_of(text) for text in ENGLISH])
    expected = load_file(kept / "expected.safetensors")["english"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(kept: Path) -> None:
    """Without preparing or encoding texts again, to the pack that it would have become.

    Its twelve images are decoded in another way since (`video.DECODING`), and encoded anew once.
    """
    run, store = as_path("stopped"), as_path("features")
    native = Native.load("native")
    begin(native, [CORPUS], CONFIG, run, resume=True)
    for computed in (12, 0):
        filled = encode(native, [CORPUS], run, store, lambda progress: None, Encoders(0))
        assert (filled.computed, filled.failed) == (computed, 0)
    before = len((kept / "stopped" / "metrics.jsonl").read_text().splitlines())
    assert before > 0
    prepared = (kept / "stopped" / "data" / "prepared.json").stat().st_mtime_ns
    assert train(job_of(run, store, read_prepared(run)))
    assert (kept / "stopped" / "data" / "prepared.json").stat().st_mtime_ns == prepared
    assert len((kept / "stopped" / "metrics.jsonl").read_text().splitlines()) > before
    packs = json.loads((kept / "stopped" / "done.json").read_text())["packs"]
    german = LanguagePack.load(run / packs["de"], native).encode_text(GERMAN).numpy()
    expected = load_file(kept / "expected.safetensors")["german"]
    # Packs have their rows in float16 since. The features of this tiny native are not normalized.
    np.testing.assert_allclose(german, expected, atol=3e-3)


def test_a_run_that_ended_is_not_begun_again(kept: Path) -> None:
    native, run = Native.load("native"), as_path("ended")
    begin(native, [CORPUS], CONFIG, run, resume=True)
    with pytest.raises(FileExistsError, match="holds a run already"):
        begin(native, [CORPUS], CONFIG, run, resume=False)
    packs = json.loads((kept / "ended" / "done.json").read_text())["packs"]
    LanguagePack.load(run / packs["de"], native)
