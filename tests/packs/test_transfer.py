"""Promises of mla_ray.packs.transfer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from mla_ray.model.lineage import LINEAGE, write_descendant
from mla_ray.model.native import Native
from mla_ray.packs.card import read_card
from mla_ray.packs.files import PackError
from mla_ray.packs.pack import LanguagePack
from mla_ray.packs.transfer import plug
from mla_ray.runtime.storage import as_path
from tests.support.commands import Mla
from tests.support.natives import MakePack


def descend(parent: Native, folder: Path, seed: int = 0) -> Native:
    """A native with slightly other weights, as a fine-tuning leaves it."""
    model = Native.load(parent.name).model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 1e-3)
    write_descendant(parent, model, as_path(folder), {"steps": 1})
    return Native.load(str(folder))


@pytest.fixture(scope="module")
def parent(native_folder: Path) -> Native:
    return Native.load(str(native_folder))


@pytest.fixture(scope="module")
def child(parent: Native, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return descend(parent, tmp_path_factory.mktemp("natives") / "child")


@pytest.fixture(scope="module")
def pack(make_pack: MakePack, parent: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "de"
    made = make_pack("de")
    measured = {"native": parent.name, "metrics": {"held_out_AR": 50.0}}
    made.card = made.card.model_copy(update=measured)
    made.save(folder)
    return folder


def test_a_plugged_pack_has_the_same_weights_and_says_what_it_was_acquired_on(
    pack: Path, parent: Native, child: Native, tmp_path: Path
) -> None:
    plug(pack, child, tmp_path / "de")
    for name in ("weights.safetensors", "tokenizer.json"):
        assert (tmp_path / "de" / name).read_bytes() == (pack / name).read_bytes()
    before, card = read_card(pack), read_card(tmp_path / "de")
    assert (card.native, card.fingerprint) == (child.name, child.fingerprint)
    assert card.acquired_on == {"native": parent.name, "fingerprint": parent.fingerprint}
    assert card.metrics == {}  # they were of the parent
    assert (card.stages, card.data, card.sha256) == (before.stages, before.data, before.sha256)
    assert read_card(pack) == before


def test_it_works_on_the_child_as_the_same_modules_around_other_blocks(
    pack: Path, parent: Native, child: Native, tmp_path: Path, corpus: dict[str, list[str]]
) -> None:
    plug(pack, child, tmp_path / "de")
    plugged = LanguagePack.load(tmp_path / "de", child)
    moved = LanguagePack.load(pack, parent)
    moved.encoder._tower[0] = child.text  # the modules as they are, run through the child's blocks
    assert plugged.encode_text(corpus["de"]).equal(moved.encode_text(corpus["de"]))
    assert not plugged.encode_text(corpus["de"]).equal(
        LanguagePack.load(pack, parent).encode_text(corpus["de"])
    )


def test_without_plugging_each_native_refuses_the_others_pack(
    pack: Path, parent: Native, child: Native, tmp_path: Path
) -> None:
    plug(pack, child, tmp_path / "de")
    for folder, native in ((pack, child), (tmp_path / "de", parent)):
        with pytest.raises(PackError, match="made for native"):
            LanguagePack.load(folder, native)


def test_plugged_again_further_down_it_keeps_its_origin(
    pack: Path, parent: Native, child: Native, tmp_path: Path
) -> None:
    grandchild = descend(child, tmp_path / "grandchild", seed=1)
    plug(pack, child, tmp_path / "one")
    plug(tmp_path / "one", grandchild, tmp_path / "two")
    plug(pack, grandchild, tmp_path / "at-once")
    for name in ("two", "at-once"):
        origin = read_card(tmp_path / name).acquired_on
        assert origin == {"native": parent.name, "fingerprint": parent.fingerprint}


def test_a_native_that_does_not_descend_from_the_packs_is_refused(
    pack: Path, parent: Native, child: Native, tmp_path: Path, other_native: Native
) -> None:
    with pytest.raises(PackError, match="already"):
        plug(pack, parent, tmp_path / "out")
    with pytest.raises(PackError, match="mla finetune"):
        plug(pack, other_native, tmp_path / "out")
    sibling = descend(child, tmp_path / "sibling", seed=2)
    lineage = json.loads((tmp_path / "sibling" / LINEAGE).read_text())
    stranger = [{"native": "a stranger", "fingerprint": "0" * 64}]
    changed = lineage | {"ancestors": stranger}
    (tmp_path / "sibling" / LINEAGE).write_text(json.dumps(changed))
    with pytest.raises(PackError, match="'a stranger'"):
        plug(pack, sibling, tmp_path / "out")
    (tmp_path / "sibling" / LINEAGE).write_text(json.dumps(lineage | {"fingerprint": "1" * 64}))
    with pytest.raises(PackError, match="of its weights"):
        plug(pack, sibling, tmp_path / "out")
    (tmp_path / "sibling" / LINEAGE).write_text("{}")
    with pytest.raises(ValueError, match=LINEAGE):
        plug(pack, sibling, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def as_before(file: Path, native: Native, *places: str | int) -> None:
    """Give a document, or what is at a place in it, the native's fingerprint of before."""
    document = json.loads(file.read_text())
    part = document
    for place in places:
        part = part[place]
    part["fingerprint"] = native.fingerprint_v1
    part.pop("fingerprint_v1", None)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("old", ["pack", "native", "pack and native"])
def test_packs_and_lineages_of_the_rule_of_before_fit_each_other_and_those_of_today(
    pack: Path,
    parent: Native,
    child: Native,
    tmp_path: Path,
    old: str,
    recognitions: list[str],
) -> None:
    shutil.copytree(pack, tmp_path / "pack")
    shutil.copytree(child.name, tmp_path / "child")
    lineage, card = tmp_path / "child" / LINEAGE, tmp_path / "pack" / "card.json"
    if "pack" in old:
        as_before(card, parent)
    if "native" in old:
        as_before(lineage, child)
        as_before(lineage, parent, "ancestors", 0)
    native = Native.load(str(tmp_path / "child"))
    made = plug(tmp_path / "pack", native, tmp_path / "out")
    assert (made.fingerprint, made.fingerprint_v1) == (child.fingerprint, child.fingerprint_v1)
    told = {str(lineage) if "native" in old else str(tmp_path / "pack")}
    assert {said.partition(": has the fingerprint")[0] for said in recognitions} == told
    grandchild = descend(native, tmp_path / "grandchild", seed=3)
    plug(tmp_path / "pack", grandchild, tmp_path / "further")
    with pytest.raises(PackError, match="already"):
        plug(tmp_path / "out", native, tmp_path / "twice")


def test_a_damaged_pack_is_not_plugged(pack: Path, child: Native, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in pack.iterdir():
        data = bytearray(file.read_bytes())
        if file.name == "weights.safetensors":
            data[-1] ^= 1
        (damaged / file.name).write_bytes(data)
    with pytest.raises(PackError, match="SHA-256"):
        plug(damaged, child, tmp_path / "out")
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(PackError, match="missing"):
        plug(damaged, child, tmp_path / "out")


def test_plug_by_command(mla: Mla, pack: Path, parent: Native, child: Native) -> None:
    run = mla("pack", "plug", pack, "--native", child.name, "--out", "plugged", "--json")
    assert run.code == 0, run.err
    origin = {"native": parent.name, "fingerprint": parent.fingerprint}
    expected = {"pack": "plugged", "language": "de", "native": child.name, "acquired_on": origin}
    assert run.json == expected
    assert mla("pack", "verify", "plugged", "--native", child.name).code == 0
    again = mla("pack", "plug", "plugged", "--native", child.name, "--out", "twice")
    assert again.code == 1
    assert "already" in again.err


def test_a_model_of_no_known_configuration_is_not_written(native: Native, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no configuration"):
        write_descendant(
            native, nn.Linear(1, 1), as_path(tmp_path / "out"), {}
        )  # 'tiny-clip', no folder
