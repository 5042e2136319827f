"""Promises of packs.store: what is in the store is listed, as it comes, changes and goes."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from mla_ray.model.native import Native
from mla_ray.packs.library import PackLibrary
from mla_ray.packs.store import PackStore
from tests.support.natives import MakePack


def rewrite(path: Path, data: bytes) -> None:
    """In its place, as a copy over it does, with the times of before."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


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


def test_a_folder_whose_card_is_deleted_is_dropped_after_two_scans(
    store: Path, native: Native
) -> None:
    packs = PackStore(str(store), native.fingerprint)
    assert packs.scan().languages == ["de", "en", "hi"]
    (store / "de" / "card.json").unlink()
    assert packs.scan().languages == ["de", "en", "hi"]  # it may be in replacement
    assert packs.scan().languages == ["en", "hi"]


@pytest.mark.parametrize("first", ["garbage", "whole"])
def test_what_a_card_says_holds_for_its_bytes_alone(
    store: Path, native: Native, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and times may be the same: a clock has steps, and a copy may set the time."""
    packs = PackStore(str(store), native.fingerprint)
    monkeypatch.setattr(packs._fs, "ukey", lambda path: "of a disk whose clock stands still")
    path = store / "de" / "card.json"
    whole = path.read_bytes()
    garbage = whole[:-2] + b"]\n"
    assert len(garbage) == len(whole)
    before, after = (garbage, whole) if first == "garbage" else (whole, garbage)
    rewrite(path, before)
    assert ("de" in packs.scan().broken) == (first == "garbage")
    assert ("de" in packs.scan().broken) == (first == "garbage")
    rewrite(path, after)
    assert ("de" in packs.scan().broken) == (first != "garbage")


def test_a_card_that_is_unreadable_elsewhere_is_read_again(
    store: Path, native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an object store a sound card is read once, another at every look."""
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/cards", recursive=True)
    read: list[str] = []
    packs = PackStore("memory://cards", native.fingerprint)
    cat, whole = packs._fs.cat_file, memory.cat_file("/cards/de/card.json")
    with monkeypatch.context() as patch:
        patch.setattr(packs._fs, "cat_file", lambda path, **k: read.append(path) or cat(path, **k))
        try:
            memory.pipe_file("/cards/de/card.json", whole[:100])
            assert packs.scan().languages == ["en", "hi"]
            packs.scan()
            assert [path.rpartition("/cards/")[2] for path in sorted(read)] == [
                "de/card.json",
                "de/card.json",
                "hi/card.json",
            ]
            memory.pipe_file("/cards/de/card.json", whole)
            assert packs.scan().languages == ["de", "en", "hi"]
        finally:
            memory.rm("/cards", recursive=True)


def test_rows_are_read_from_a_copy_that_no_change_of_the_store_reaches(
    store: Path, native: Native, make_pack: MakePack, corpus: dict[str, list[str]]
) -> None:
    """Writing over a file that is mapped into memory would change the pack, or end the process."""
    packs = PackStore(str(store), native.fingerprint)
    pack = packs.load(packs.scan().packs["de"], native)
    place = pack.encoder.embedding.rows.weight.data_ptr()
    mapped = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    (file,) = [
        path
        for addresses, *_, path in (line for line in mapped if len(line) == 6)
        if int(addresses.split("-")[0], 16) <= place < int(addresses.split("-")[1], 16)
    ]
    assert file.endswith("/weights.safetensors (deleted)")
    assert not file.startswith(str(store))
    (store / "de" / "weights.safetensors").write_bytes(b"")
    expected = make_pack("de").with_half_rows().encode_text(corpus["de"])
    assert torch.equal(pack.encode_text(corpus["de"]), expected)
