"""Promises of packs.files: what is fetched of a pack is there, and no larger than allowed."""

import re
from pathlib import Path

import pytest

from mla_ray.packs.files import MAX_FILE_BYTES, NEEDED, PackError, check_sizes, fetch_files
from mla_ray.runtime.storage import as_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*NEEDED, "README.md", "other.bin"):
        (tmp_path / "pack" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pack" / name).write_text(name)
    return tmp_path / "pack"


def test_what_a_pack_needs_is_fetched_and_no_more(folder: Path, tmp_path: Path) -> None:
    fetch_files(as_path(folder), tmp_path / "here")
    files = {path.name: path.read_text() for path in (tmp_path / "here").iterdir()}
    needed = ("card.json", "tokenizer.json", "weights.safetensors")
    assert files == {name: name for name in needed}


@pytest.mark.parametrize("there", ["nothing", "a folder"])
def test_a_file_that_is_missing_is_named(folder: Path, tmp_path: Path, there: str) -> None:
    (folder / "card.json").unlink()
    if there == "a folder":
        (folder / "card.json").mkdir()
    with pytest.raises(PackError, match=re.escape(f"{folder}/card.json: missing")):
        fetch_files(as_path(folder), tmp_path / "here")


def test_a_file_that_is_too_large_is_not_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_FILE_BYTES, "tokenizer.json", 3)
    with pytest.raises(PackError, match=r"tokenizer\.json: larger than 3 bytes"):
        fetch_files(as_path(folder), tmp_path / "here")
    assert not (tmp_path / "here" / "tokenizer.json").exists()


def test_sizes_are_checked_of_a_repository_too() -> None:
    sizes: dict[str, int | None] = dict.fromkeys(NEEDED, 1)
    check_sizes(sizes | {"other.bin": 1 << 60}, "owner/pack")
    with pytest.raises(PackError, match=r"owner/pack/README\.md: of unknown size; at most 1048576"):
        check_sizes(sizes | {"README.md": None}, "owner/pack")
    del sizes["weights.safetensors"]
    with pytest.raises(PackError, match=r"owner/pack/weights\.safetensors: missing"):
        check_sizes(sizes, "owner/pack")
