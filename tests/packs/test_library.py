"""Promises of packs.library: the packs of a store are served, as they come, change and go."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mla_ray.model.native import Native
from mla_ray.packs.files import PackError
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.store import GRACE, PackStore
from tests.support.natives import MakePack


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


@pytest.mark.parametrize("part", ["half", "none", "garbage", "forbidden", "a folder"])
def test_a_card_that_cannot_be_read_leaves_the_version_before_in_service(
    library: PackLibrary, store: Path, make_pack: MakePack, part: str
) -> None:
    old, card = library.get("de"), store / "de" / "card.json"
    assert old is not None
    version, whole = library.listing.packs["de"].version, card.read_bytes()
    if part == "a folder":
        card.unlink()
        card.mkdir()
    elif part == "forbidden":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        card.chmod(0)
    else:
        given = {"half": whole[: len(whole) // 2], "none": b"", "garbage": b"[" * 100_000}
        card.write_bytes(given[part])
    for _ in range(GRACE + 2):
        listing = library.refresh()
        assert listing.languages == ["de", "en", "hi"]
        assert listing.packs["de"].version == version
        assert listing.broken["de"].endswith("the previous version is served")
        assert library.get("de") is old
    # Another store, which knows of no version before, has none to serve.
    fresh = PackStore(str(store), library.native.fingerprint).scan()
    assert fresh.languages == ["en", "hi"]
    assert "card.json" in fresh.broken["de"]
    make_pack("de", seed=7).save(store / "new")
    if part == "a folder":
        card.rmdir()
    for path in (store / "new").iterdir():
        (store / "de" / path.name).unlink(missing_ok=True)
        path.rename(store / "de" / path.name)
    (store / "new").rmdir()
    assert not library.refresh().broken
    assert library.get("de") is not old


def test_a_card_of_another_native_leaves_the_version_before_in_service(
    library: PackLibrary, store: Path
) -> None:
    old, path = library.get("de"), store / "de" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    listing = library.refresh()
    assert library.get("de") is old
    assert "not for this one" in listing.broken["de"]


def spoil(store: Path, make_pack: MakePack) -> Path:
    """A German pack with a NaN, signed as if nothing were wrong; where its weights are."""
    path = store / "de" / "weights.safetensors"
    make_pack("de", seed=7).save(store / "de")
    weights = load_file(path)
    weights["acquirers.0.up.bias"][0] = float("nan")
    save_file(weights, path)
    card = json.loads((store / "de" / "card.json").read_text())
    card["sha256"]["weights.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (store / "de" / "card.json").write_text(json.dumps(card))
    return path


def test_a_refused_pack_is_not_loaded_again_until_its_files_change(
    library: PackLibrary, store: Path, make_pack: MakePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try costs all languages, as one thread encodes and loads."""
    tries: list[str] = []
    load = library.store.load
    monkeypatch.setattr(
        library.store, "load", lambda *given: tries.append(given[0].name) or load(*given)
    )
    path = spoil(store, make_pack)
    library.refresh()
    for _ in range(5):
        with pytest.raises(PackError, match=r"acquirers\.0\.up\.bias") as raised:
            library.get("de")
        assert str(raised.value).startswith(f"{path}: ")
    assert tries == ["de"]
    assert "acquirers.0.up.bias" in library.refresh().broken["de"]
    assert library.get("hi") is not None
    make_pack("de", seed=8).save(store / "de")
    assert library.get("de") is not None
    assert "de" not in library.refresh().broken


def test_a_refused_replacement_leaves_the_old_one_and_is_not_loaded_again(
    library: PackLibrary, store: Path, make_pack: MakePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = library.get("de")
    tries: list[str] = []
    load = library.store.load
    monkeypatch.setattr(
        library.store, "load", lambda *given: tries.append(given[0].name) or load(*given)
    )
    path = spoil(store, make_pack)
    for _ in range(5):
        listing = library.refresh()
        assert library.get("de") is old
        assert "acquirers.0.up.bias" in listing.broken["de"]
    assert tries == ["de"]
    weights = load_file(path)
    weights["acquirers.0.up.bias"][0] = 0  # not what the card says, but another file
    save_file(weights, path)
    assert "SHA-256" in library.refresh().broken["de"]
    assert library.get("de") is old


@pytest.mark.parametrize("renames", [1, 2])
def test_what_a_killed_writer_left_is_put_back_by_a_look(
    library: PackLibrary, store: Path, make_pack: MakePack, renames: int
) -> None:
    """As if one were killed after so many renames (what a writer leaves, test_atomic says)."""
    make_pack("de", seed=7).save(store / ".de-new-0a0a0a0a")
    (store / "de").rename(store / ".de-old-0b0b0b0b")
    if renames == 2:
        (store / ".de-new-0a0a0a0a").rename(store / "de")
    before = library.listing.packs["de"].version
    assert library.refresh().languages == ["de", "en", "hi"]
    assert (library.listing.packs["de"].version == before) == (renames == 1)
    assert library.get("de") is not None
    assert sorted(path.name for path in store.iterdir()) == ["de", "hi"]
