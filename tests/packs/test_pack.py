"""Promises of mla_ray.packs.pack."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mla_ray.model.native import Native
from mla_ray.packs import pack as module
from mla_ray.packs.card import PackError, read_card
from mla_ray.packs.pack import LanguagePack, copy_pack
from tests.support.natives import BuildModel, MakePack
from tests.support.trap import Trap

Tokenize = Callable[..., torch.Tensor]
FILES = {"weights.safetensors", "tokenizer.json", "card.json", "README.md"}


@pytest.fixture
def saved(make_pack: MakePack, tmp_path: Path) -> Path:
    folder = tmp_path / "packs" / "de"
    make_pack("de").save(folder)
    return folder


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


def sign(folder: Path) -> None:
    """Put the hashes of the files as they are into the card."""
    names = ("weights.safetensors", "tokenizer.json")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    edit_card(folder, sha256=hashes)


def refuse(folder: Path, native: Native, *words: str) -> None:
    with pytest.raises(PackError) as error:
        LanguagePack.load(folder, native)
    for word in (str(folder), *words):
        assert word in str(error.value)


def test_a_loaded_pack_gives_the_saved_ones_features_to_the_byte(
    make_pack: MakePack, native: Native, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    pack = make_pack("hi")
    features = pack.encode_text(corpus["hi"])
    assert features.shape == (6, 32)
    assert features.dtype == torch.float32
    pack.save(tmp_path / "hi")
    loaded = LanguagePack.load(tmp_path / "hi", native)
    assert torch.equal(loaded.encode_text(corpus["hi"]), features)
    assert loaded.card == pack.card == read_card(tmp_path / "hi")
    assert loaded.language == "hi"


def test_a_pack_saved_again_has_the_same_bytes(saved: Path, native: Native, tmp_path: Path) -> None:
    LanguagePack.load(saved, native).save(tmp_path / "again")
    for name in FILES:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_pack_for_another_native_is_refused_naming_both(
    saved: Path, native: Native, other_native: Native
) -> None:
    prints = native.fingerprint[:12], other_native.fingerprint[:12]
    refuse(saved, other_native, "'tiny-clip'", "'other-clip'", *prints)


def test_a_pack_of_the_rule_of_before_is_taken_told_once_and_saved_with_the_rule_of_today(
    saved: Path, native: Native, tmp_path: Path, recognitions: list[str]
) -> None:
    card = json.loads((saved / "card.json").read_text())
    assert (card["fingerprint"], card.pop("fingerprint_v1")) == (
        native.fingerprint,
        native.fingerprint_v1,
    )
    card["fingerprint"] = native.fingerprint_v1  # as mla-ray 0.1.0 wrote it
    (saved / "card.json").write_text(json.dumps(card))
    for _ in range(2):
        old = LanguagePack.load(saved, native)
    (said,) = recognitions
    assert str(saved) in said
    assert "save it again" in said
    old.save(tmp_path / "anew")
    anew = read_card(tmp_path / "anew")
    assert (anew.fingerprint, anew.fingerprint_v1) == (native.fingerprint, native.fingerprint_v1)
    LanguagePack.load(tmp_path / "anew", native)
    assert len(recognitions) == 1


def test_natives_that_differ_in_heads_alone_refuse_each_others_packs(
    saved: Path, native: Native, build_model: BuildModel, tokenize: Tokenize
) -> None:
    """By the rule of before they were one."""
    model = build_model(open_clip.CLIP, heads=4)
    other = Native("other-heads", model, tokenize)
    assert other.fingerprint_v1 == native.fingerprint_v1
    refuse(saved, other, "'tiny-clip'", "'other-heads'")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_damaged_byte_is_refused(saved: Path, native: Native, name: str, place: int) -> None:
    data = bytearray((saved / name).read_bytes())
    data[place] ^= 1
    (saved / name).write_bytes(data)
    refuse(saved, native, f"{name}: SHA-256", "damaged")


def test_hashes_missing_from_the_card_are_refused(saved: Path, native: Native) -> None:
    edit_card(saved, sha256={})
    refuse(saved, native, "weights.safetensors", "SHA-256")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "card.json"])
def test_a_missing_file_is_refused(saved: Path, native: Native, name: str) -> None:
    (saved / name).unlink()
    refuse(saved, native, f"{name}: missing")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "card.json"])
def test_a_file_that_is_too_large_is_refused(
    saved: Path, native: Native, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (saved / name).stat().st_size
    monkeypatch.setitem(module.MAX_FILE_BYTES, name, size)
    LanguagePack.load(saved, native)
    monkeypatch.setitem(module.MAX_FILE_BYTES, name, size - 1)
    refuse(saved, native, f"{name}: larger than {size - 1} bytes")


@pytest.mark.parametrize(
    "name", ["acquirers.2.up.bias", "embedding.rows.weight", "embedding.tokens"]
)
@pytest.mark.parametrize("change", ["missing", "another shape", "another type"])
def test_a_wrong_tensor_is_refused(saved: Path, native: Native, name: str, change: str) -> None:
    path = saved / "weights.safetensors"
    weights = load_file(path)
    weight = weights.pop(name)
    if change == "another shape":
        weights[name] = weight[:-1].clone()
    elif change == "another type":
        weights[name] = weight.half() if weight.is_floating_point() else weight.long()
    save_file(weights, path)
    sign(saved)
    refuse(saved, native, "weights.safetensors", name)


def test_an_unknown_tensor_is_refused(saved: Path, native: Native) -> None:
    path = saved / "weights.safetensors"
    save_file(load_file(path) | {"more": torch.zeros(1)}, path)
    sign(saved)
    refuse(saved, native, "weights.safetensors", "more")


@pytest.mark.parametrize("token", [-1, 10_000])
def test_rows_of_tokens_that_the_tokenizer_lacks_are_refused(
    saved: Path, native: Native, token: int
) -> None:
    path = saved / "weights.safetensors"
    weights = load_file(path)
    weights["embedding.tokens"][-1] = token
    save_file(weights, path)
    sign(saved)
    refuse(saved, native, "tokenizer.json")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_a_file_of_another_format_is_refused_whatever_its_hash(
    saved: Path, native: Native, name: str
) -> None:
    (saved / name).write_text("no such format")
    sign(saved)
    refuse(saved, native, name)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(saved: Path, native: Native, version: Any) -> None:
    edit_card(saved, schema_version=version)
    refuse(saved, native, "card.json", f"schema version {version}", "reads 1")


@pytest.mark.parametrize("key", ["width", "blocks", "context_length"])
def test_a_card_of_other_sizes_than_the_natives_is_refused(
    saved: Path, native: Native, key: str
) -> None:
    edit_card(saved, **{key: 5})
    refuse(saved, native, "card.json", "5")


@pytest.mark.parametrize("change", [{"rows": 0}, {"rows": "many"}, {"surprise": 1}])
def test_a_card_that_is_not_one_is_refused(
    saved: Path, native: Native, change: dict[str, Any]
) -> None:
    edit_card(saved, **change)
    refuse(saved, native, "card.json", *change)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_card_that_is_not_json_of_a_card_is_refused(
    saved: Path, native: Native, text: bytes
) -> None:
    (saved / "card.json").write_bytes(text)
    refuse(saved, native, "card.json")


def test_a_folder_that_is_not_a_pack_is_refused(native: Native, tmp_path: Path) -> None:
    refuse(tmp_path, native, "card.json: missing", "language pack")
    refuse(tmp_path / "nowhere", native, "card.json: missing")


def test_saving_over_a_pack_replaces_it(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]]
) -> None:
    new = make_pack("de", seed=1)
    features = new.encode_text(corpus["de"])
    before = LanguagePack.load(saved, native)
    assert not torch.equal(before.encode_text(corpus["de"]), features)
    (saved / "leftover").touch()
    new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert {path.name for path in saved.iterdir()} == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["de"]


def test_a_save_that_fails_leaves_the_older_pack(
    saved: Path, make_pack: MakePack, native: Native, corpus: dict[str, list[str]]
) -> None:
    features = LanguagePack.load(saved, native).encode_text(corpus["de"])
    new = make_pack("de", seed=1)
    new.card = new.card.model_copy(update={"metrics": {"AR": object()}})  # no JSON of that
    with pytest.raises(ValueError, match="serialize"):
        new.save(saved)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert [path.name for path in saved.parent.iterdir()] == ["de"]


@pytest.mark.parametrize("how", ["save", "copy"])
def test_a_folder_that_is_not_a_pack_is_never_overwritten(
    saved: Path, make_pack: MakePack, tmp_path: Path, how: str
) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis exists and is not a language pack"):
        make_pack("de").save(foreign) if how == "save" else copy_pack(saved, foreign)
    assert [path.name for path in foreign.iterdir()] == ["chapter1.tex"]
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "packs"}


def test_an_empty_folder_may_be_saved_to(
    make_pack: MakePack, native: Native, tmp_path: Path
) -> None:
    (tmp_path / "de").mkdir()
    make_pack("de").save(tmp_path / "de")
    assert LanguagePack.load(tmp_path / "de", native).language == "de"


def test_a_pack_is_as_small_as_what_it_holds(saved: Path) -> None:
    card = read_card(saved)
    acquirers = card.blocks * (2 * card.width * card.hidden + card.width + card.hidden)
    linear = card.width * (card.row_width + 1)
    values = card.rows * (1 + card.row_width) + linear + acquirers
    size = (saved / "weights.safetensors").stat().st_size
    assert 4 * values < size < 4 * values + 2048
    assert sum(path.stat().st_size for path in saved.iterdir()) < size + 64_000


def test_others_may_read_a_pack(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o755


def test_the_readme_says_what_the_pack_is(saved: Path, native: Native) -> None:
    text = (saved / "README.md").read_text()
    assert text.startswith("---\n")
    assert "# de for tiny-clip\n" in text
    assert native.fingerprint in text


def test_a_copied_pack_has_the_same_bytes_and_replaces_an_older_one(
    saved: Path, make_pack: MakePack, tmp_path: Path
) -> None:
    target = tmp_path / "store" / "de"
    make_pack("de", seed=1).save(target)
    old = (target / "weights.safetensors").read_bytes()
    copy_pack(saved, target)
    for name in FILES:
        assert (saved / name).read_bytes() == (target / name).read_bytes(), name
    assert (target / "weights.safetensors").read_bytes() != old
    assert [path.name for path in target.parent.iterdir()] == ["de"]


def test_a_pickle_in_the_folder_is_never_read(
    saved: Path, native: Native, corpus: dict[str, list[str]], tmp_path: Path
) -> None:
    features = LanguagePack.load(saved, native).encode_text(corpus["de"])
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name in ("weights.pt", "weights.bin", "pytorch_model.bin", "tokenizer.pkl"):
        (saved / name).write_bytes(trap)
    assert torch.equal(LanguagePack.load(saved, native).encode_text(corpus["de"]), features)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json"])
def test_a_pickle_in_disguise_is_never_read(
    saved: Path, native: Native, name: str, tmp_path: Path
) -> None:
    (saved / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    sign(saved)
    with pytest.raises(Exception, match=r"."):  # which one, another test says
        LanguagePack.load(saved, native)
    assert not (tmp_path / "sprung").exists()
