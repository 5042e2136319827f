"""Promises of mla_ray.model.identity: a native is known by its files, and only by these."""

import shutil
from pathlib import Path

import pytest

from mla_ray.model.identity import memory_of, recall, remember
from mla_ray.model.native import Native


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(native_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(native_folder, tmp_path / "native")


def test_a_native_that_was_loaded_is_known_until_a_file_changes(
    folder: Path, native: Native, tmp_path: Path
) -> None:
    name = str(folder)
    assert recall(name) is None
    remember(name, memory_of(name), Native.load(name).identity)
    known = recall(name)
    assert known
    assert (known.name, known.fingerprint, known.dim) == (name, native.fingerprint, native.dim)
    assert known.fingerprint_v1 == native.fingerprint_v1
    moved = shutil.move(name, tmp_path / "elsewhere")
    assert getattr(recall(str(moved)), "name", None) == str(moved)
    config = Path(moved) / "open_clip_config.json"
    config.write_text(config.read_text() + " ")
    assert recall(str(moved)) is None


def test_a_native_that_was_replaced_while_it_was_loaded_is_not_remembered(
    folder: Path, native: Native
) -> None:
    name = str(folder)
    before = memory_of(name)
    (folder / "open_clip_config.json").write_text("{}")
    remember(name, before, native.identity)
    assert recall(name) is None


def test_a_damaged_memory_is_forgotten(folder: Path, native: Native) -> None:
    name = str(folder)
    remember(name, memory_of(name), native.identity)
    file = memory_of(name)
    assert file
    file.write_text('{"fingerprint": ')
    assert recall(name) is None
    file.write_text('{"fingerprint": "0"}')
    assert recall(name) is None


def test_a_native_without_a_folder_is_not_known(native: Native) -> None:
    name = "hf-hub:owner/model"
    remember(name, memory_of(name), native.identity)
    assert recall(name) is None


def test_a_cache_that_cannot_be_written_costs_nothing(
    folder: Path, native: Native, cache: Path
) -> None:
    cache.write_text("a file where the folder would be")
    remember(str(folder), memory_of(str(folder)), native.identity)
    assert recall(str(folder)) is None
