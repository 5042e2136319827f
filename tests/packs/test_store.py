"""Promises of packs.store: what is in the store is served, as it comes, changes and goes."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from mla_ray.model.native import Native
from mla_ray.packs.card import PackError
from mla_ray.packs.store import GRACE, PackLibrary, PackStore
from tests.support.natives import MakePack


@pytest.fixture
def store(tmp_path: Path, make_pack: MakePack) -> Path:
    for language in ("de", "hi"):
        make_pack(language).save(tmp_path / "store" / language)
    return tmp_path / "store"


@pytest.fixture
def library(store: Path, native: Native) -> PackLibrary:
    library = PackLibrary(PackStore(str(store), native.fingerprint), native)
    library.refresh()
    return library


def test_english_needs_no_pack(library: PackLibrary) -> None:
    assert library.get("en") is None
    assert library.listing.languages == ["de", "en", "hi"]


def test_a_pack_is_loaded_when_it_is_asked_for_and_held(library: PackLibrary) -> None:
    assert library.held == []
    pack = library.get("de")
    assert pack is not None
    assert pack.language == "de"
    assert library.get("de") is pack
    assert library.held == ["de"]


def test_no_more_packs_are_held_than_allowed(
    store: Path, native: Native, make_pack: MakePack
) -> None:
    make_pack("cs", texts=["pes", "kočka"]).save(store / "cs")
    library = PackLibrary(PackStore(str(store), native.fingerprint), native, capacity=2)
    for language in ("de", "hi", "de", "cs"):
        library.get(language)
    assert library.held == ["de", "cs"]  # hi was the one not used for longest


def test_a_pack_added_later_is_found_even_before_the_next_look(
    library: PackLibrary, store: Path, make_pack: MakePack
) -> None:
    with pytest.raises(KeyError):
        library.get("cs")
    make_pack("cs", texts=["pes", "kočka"]).save(store / "cs")
    pack = library.get("cs")
    assert pack is not None
    assert pack.language == "cs"


def test_a_replaced_pack_takes_the_place_of_the_old(
    library: PackLibrary, store: Path, make_pack: MakePack
) -> None:
    old = library.get("de")
    assert old is not None
    make_pack("de", seed=7).save(store / "de")
    assert library.get("de") is old  # until someone looks
    library.refresh()
    new = library.get("de")
    assert new is not None
    assert not torch.equal(new.encode_text(["ein Hund"]), old.encode_text(["ein Hund"]))


def test_a_removed_pack_is_gone_only_when_it_is_missed_twice(
    library: PackLibrary, store: Path
) -> None:
    library.get("de")
    shutil.rmtree(store / "de")
    for _ in range(GRACE - 1):
        library.refresh()
        assert library.get("de") is not None  # it might be in the middle of a swap
    library.refresh()
    assert library.held == []
    with pytest.raises(KeyError):
        library.get("de")


def test_a_damaged_replacement_leaves_the_old_one_in_service(
    library: PackLibrary, store: Path, make_pack: MakePack
) -> None:
    old = library.get("de")
    make_pack("de", seed=7).save(store / "de")
    with (store / "de" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    listing = library.refresh()
    assert library.get("de") is old
    assert "SHA-256" in listing.broken["de"]


def test_a_pack_that_lacks_a_file_is_refused_until_it_is_whole(
    library: PackLibrary, store: Path, tmp_path: Path
) -> None:
    weights = store / "hi" / "weights.safetensors"
    weights.rename(tmp_path / "weights")
    with pytest.raises(PackError, match=r"weights\.safetensors: missing"):
        library.get("hi")
    (tmp_path / "weights").rename(weights)
    assert library.get("hi") is not None


def test_packs_of_another_native_and_no_packs_are_listed_as_broken(
    store: Path, native: Native, other_native: Native
) -> None:
    (store / "notes").mkdir()  # no card: nothing of ours
    (store / "odd").mkdir()
    (store / "odd" / "card.json").write_text("{}")
    shutil.copytree(store / "de", store / "german")
    listing = PackStore(str(store), native.fingerprint).scan()
    assert listing.languages == ["de", "en", "hi"]
    assert set(listing.broken) == {"odd", "german"}
    assert "schema version" in listing.broken["odd"]
    assert "second pack" in listing.broken["german"]
    other = PackStore(str(store), other_native.fingerprint).scan()
    assert other.languages == ["en"]
    assert "made for native 'tiny-clip'" in other.broken["de"]


def test_packs_of_the_rule_of_before_are_served_and_that_is_told_once(
    store: Path, native: Native, recognitions: list[str]
) -> None:
    path = store / "de" / "card.json"
    card = json.loads(path.read_text()) | {"fingerprint": native.fingerprint_v1}
    path.write_text(json.dumps(card))
    packs = PackStore(str(store), native.fingerprint, native.fingerprint_v1)
    library = PackLibrary(packs, native)
    for _ in range(2):
        library.refresh()
        assert library.listing.languages == ["de", "en", "hi"]
        assert library.get("de") is not None
    assert library.listing.broken == {}
    (said,) = recognitions
    assert said.startswith(f"{store / 'de'}: has the fingerprint of mla-ray 0.1.0")
    without = PackStore(str(store), native.fingerprint).scan()
    assert set(without.broken) == {"de"}


def test_a_pack_that_calls_itself_english_is_refused(store: Path, native: Native) -> None:
    path = store / "hi" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"language": "en"}))
    listing = PackStore(str(store), native.fingerprint).scan()
    assert listing.languages == ["de", "en"]
    assert "'en'" in listing.broken["hi"]


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("de-AT", "de"),
        ("de_CH_1996", "de"),
        ("ger", "de"),
        ("en-GB", "en"),
        ("fr", None),
        ("not a tag!", None),
        ("../de", None),
    ],
)
def test_tags_find_their_language(library: PackLibrary, tag: str, language: str | None) -> None:
    assert library.listing.resolve(tag) == language


def test_a_store_may_be_anywhere_fsspec_reaches(store: Path, native: Native) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/packs", recursive=True)
    try:
        library = PackLibrary(PackStore("memory://packs", native.fingerprint), native)
        library.refresh()
        pack = library.get("de")
        assert pack is not None
        assert pack.encode_text(["Hund"]).shape == (1, native.dim)
    finally:
        memory.rm("/packs", recursive=True)


def test_a_store_that_is_not_there_is_empty(tmp_path: Path, native: Native) -> None:
    assert PackStore(str(tmp_path / "none"), native.fingerprint).scan().languages == ["en"]
