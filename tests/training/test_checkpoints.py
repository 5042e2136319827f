"""Promises of training.checkpoints: a damaged checkpoint costs only the steps since the last."""

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from upath import UPath

from mla_ray.runtime import storage
from mla_ray.runtime.storage import as_path, read_bytes, remove, write_bytes
from mla_ray.training import checkpoints
from mla_ray.training.checkpoints import CARD, TENSORS, Checkpoints, Loaded
from tests.support import forks
from tests.support.logs import logged
from tests.support.s3 import relayed, s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    if request.param == "local":
        return as_path(tmp_path / "checkpoints")
    bucket: str = request.getfixturevalue("bucket")
    return as_path(f"{bucket}/{tmp_path.name}/checkpoints")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    with logged(checkpoints.log.name) as said:
        yield said


def tensors(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    weight = torch.randn(64, 32, generator=generator)
    return {"weight": weight, "turned": weight.T[:5], "step": torch.tensor(number)}


def state(number: int) -> dict[str, Any]:
    return {"stage": "nlt", "step": number, "rng": [1, 2, 3], "best": 0.1 * number}


def save(folder: UPath, *numbers: int, keep: int = 2) -> Checkpoints:
    made = Checkpoints(folder, keep)
    for number in numbers:
        assert made.save(number, tensors(number), state(number)) == folder / f"{number:010d}"
    return made


def load(folder: UPath) -> Loaded:
    loaded = Checkpoints(folder).load()
    assert loaded
    return loaded


def assert_is(loaded: Loaded | None, number: int) -> None:
    assert loaded
    assert loaded.number == number
    assert loaded.path.name == f"{number:010d}"
    assert loaded.state == state(number)
    assert loaded.tensors.keys() == tensors(number).keys()
    for name, tensor in tensors(number).items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].is_contiguous()


def names(folder: UPath) -> list[str]:
    return sorted(path.name.lstrip("0") for path in folder.iterdir())


def cut(path: UPath) -> None:
    write_bytes(path, read_bytes(path)[:-100])


def flip(path: UPath) -> None:
    """One bit, in the middle."""
    data = bytearray(read_bytes(path))
    data[len(data) // 2] ^= 1
    write_bytes(path, bytes(data))


def empty(path: UPath) -> None:
    write_bytes(path, b"")


def test_what_was_saved_is_loaded(folder: UPath) -> None:
    assert Checkpoints(folder).load() is None
    save(folder, 10, 20)
    assert_is(load(folder), 20)
    assert {path.name for path in (folder / "0000000020").iterdir()} == {TENSORS, CARD}


def test_state_is_what_json_makes_of_it(folder: UPath) -> None:
    """Even where that is not the same: keys are strings, tuples are lists."""
    said = {"keys": {10: "a", 9: "b"}, "pair": (1, 2), "loss": float("inf"), "text": "अंगूर"}
    Checkpoints(folder).save(1, {}, said)
    expected = {"keys": {"10": "a", "9": "b"}, "pair": [1, 2], "loss": float("inf")}
    assert load(folder).state == expected | {"text": "अंगूर"}
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(folder).save(2, {}, {"path": Path()})
    assert names(folder) == ["1"]


@pytest.mark.parametrize("damage", [cut, flip, empty, remove], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", [TENSORS, CARD])
def test_a_damaged_one_is_passed_over_for_the_one_before(
    folder: UPath, file: str, damage: Callable[[UPath], None], warnings: list[str]
) -> None:
    save(folder, 10, 20)
    damage(folder / "0000000020" / file)
    resumed = Checkpoints(folder)
    assert_is(resumed.load(), 10)
    (line,) = warnings
    assert line.startswith(f"{folder}/0000000020 skipped: ")
    assert file in line
    resumed.save(15, tensors(15), state(15))
    assert names(folder) == ["10", "15"]  # the damaged one, later than the new one, is gone
    assert_is(load(folder), 15)


def test_when_all_are_damaged_nobody_starts_anew_by_mistake(folder: UPath) -> None:
    save(folder, 10, 20)
    flip(folder / "0000000010" / TENSORS)
    cut(folder / "0000000020" / TENSORS)
    with pytest.raises(ValueError, match=r"no checkpoint is valid .*delete this folder") as raised:
        Checkpoints(folder).load()
    assert str(raised.value).startswith(f"{folder}: ")
    for number in (10, 20):
        assert f"{number:010d}: {TENSORS}" in str(raised.value)


def test_a_run_killed_in_its_first_save_starts_anew(folder: UPath, warnings: list[str]) -> None:
    write_bytes(folder / "0000000010" / TENSORS, b"half")
    resumed = Checkpoints(folder)
    assert resumed.load() is None
    assert "interrupted" in warnings[0]
    resumed.save(5, tensors(5), state(5))
    assert names(folder) == ["5"]
    assert_is(load(folder), 5)


def test_as_many_sound_ones_stay_as_were_asked_for(folder: UPath) -> None:
    save(folder, 10, 20, 30, 40)
    assert names(folder) == ["30", "40"]
    save(folder, 50, keep=3)  # by a process that knows nothing of the others
    assert names(folder) == ["30", "40", "50"]
    flip(folder / "0000000040" / TENSORS)
    save(folder, 60)
    assert names(folder) == ["50", "60"]
    flip(folder / "0000000060" / TENSORS)
    save(folder, 70)
    assert names(folder) == ["50", "70"]  # a damaged one is none of the two
    save(folder, 80, keep=1)
    assert names(folder) == ["80"]
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(folder, keep=0)


def test_one_of_the_same_number_is_replaced(folder: UPath) -> None:
    save(folder, 10, 20)
    Checkpoints(folder).save(20, {"other": torch.ones(3)}, {"stage": "le"})
    loaded = load(folder)
    assert (loaded.number, loaded.state) == (20, {"stage": "le"})
    assert loaded.tensors.keys() == {"other"}
    flip(folder / "0000000020" / CARD)
    resumed = Checkpoints(folder)
    assert_is(resumed.load(), 10)
    resumed.save(20, tensors(20), state(20))
    assert_is(load(folder), 20)
    assert names(folder) == ["10", "20"]


def test_a_later_one_that_was_not_looked_at_is_left_alone(folder: UPath) -> None:
    """A worker that was cut off and still runs must not undo what its successor saved."""
    old = save(folder, 10, 20)
    save(folder, 30, 40)
    old.save(25, tensors(25), state(25))
    assert_is(load(folder), 40)


def test_other_things_in_the_folder_are_nobodys_business(folder: UPath) -> None:
    write_bytes(folder / "README.md", b"mine")
    write_bytes(folder / "best" / TENSORS, b"mine")
    assert Checkpoints(folder).load() is None
    save(folder, 10, 20, 30)
    assert names(folder) == ["20", "30", "README.md", "best"]


def test_tensors_outlive_the_checkpoint_they_came_from(folder: UPath) -> None:
    made = save(folder, 10)
    loaded = made.load()
    if storage.is_local(folder):
        (folder / "0000000010" / TENSORS).write_bytes(b"")  # in its place, not instead of it
    remove(folder)
    assert_is(loaded, 10)


def test_a_checkpoint_that_was_moved_to_another_number_is_not_believed(tmp_path: Path) -> None:
    save(as_path(tmp_path), 10)
    (tmp_path / "0000000010").rename(tmp_path / "0000000099")
    with pytest.raises(ValueError, match="was changed or moved after it was written"):
        Checkpoints(as_path(tmp_path)).load()


def save_until_killed(folder: str, kill_at: str) -> None:
    """Killed outright, as by the kernel: no handler of ours runs."""
    put, remove_one = storage._put, storage._remove

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def put_or_die(file: Path, path: UPath) -> None:
        if kill_at == "first":
            die()
        put(file, path)
        if path.name == kill_at:
            die()

    def remove_or_die(path: UPath) -> None:
        remove_one(path)
        if kill_at == "prune" and "0000000010" in str(path):
            die()

    storage._put, storage._remove = put_or_die, remove_or_die
    tempfile.tempdir = str(Path(folder).parent)  # nobody else removes what it leaves there
    made = Checkpoints(as_path(folder))
    made.load()
    made.save(30, {"weight": torch.ones(9)}, {})


@pytest.mark.parametrize("kill_at", ["first", TENSORS, CARD, "prune"])
def test_a_process_killed_at_any_point_leaves_the_one_before(tmp_path: Path, kill_at: str) -> None:
    save(as_path(tmp_path / "c"), 10, 20)
    assert forks.exit_code(save_until_killed, str(tmp_path / "c"), kill_at) == -signal.SIGKILL
    resumed = Checkpoints(as_path(tmp_path / "c"))
    loaded = resumed.load()
    assert loaded
    assert loaded.number == (30 if kill_at in (CARD, "prune") else 20)
    resumed.save(40, tensors(40), state(40))
    assert names(as_path(tmp_path / "c")) == [str(loaded.number), "40"]


def test_a_store_that_is_away_is_waited_for_and_not_called_damaged(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "PAUSES", (0.2,) * 20)
    folder = as_path(f"{bucket}/{tmp_path.name}")
    with relayed() as relay:
        made = save(folder, 10)
        with relay.away(0.5):
            made.save(20, tensors(20), state(20))
        with relay.away(0.5):
            assert_is(load(folder), 20)
        monkeypatch.setattr(storage, "PAUSES", (0.1,))
        with relay.away(), pytest.raises(ConnectionError):
            Checkpoints(folder).load()
    assert not warnings


def test_a_file_the_disk_cannot_read_back_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    folder = as_path(tmp_path)
    save(folder, 10, 20)
    measure = checkpoints._measure

    def fail(file: Path) -> tuple[int, str]:
        if "0000000020" in str(file):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return measure(file)

    monkeypatch.setattr(checkpoints, "_measure", fail)
    monkeypatch.setattr(storage, "PAUSES", (0,))
    assert_is(load(folder), 10)
    assert "cannot read it" in warnings[0]


def test_old_ones_that_cannot_be_removed_do_not_stop_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    made = save(as_path(tmp_path), 10, 20)
    remove_one = storage._remove

    def refuse(path: UPath) -> None:
        if "0000000010" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        remove_one(path)

    monkeypatch.setattr(storage, "_remove", refuse)
    monkeypatch.setattr(storage, "PAUSES", (0,))
    made.save(30, tensors(30), state(30))
    assert "old checkpoints could not be deleted" in warnings[0]
    assert_is(load(as_path(tmp_path)), 30)


def test_the_card_is_for_people_too(tmp_path: Path) -> None:
    save(as_path(tmp_path), 10)
    card = json.loads((tmp_path / "0000000010" / CARD).read_text())
    assert card["state"] == state(10)
    assert card["size"] == (tmp_path / "0000000010" / TENSORS).stat().st_size
    assert len(card["sha256"]) == 64
