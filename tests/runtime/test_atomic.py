"""Promises of runtime.atomic: a folder is replaced as one, whoever is killed, whoever reads."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_ray.runtime import atomic
from mla_ray.runtime.atomic import (
    folders_in_replacement,
    one_process,
    read_consistently,
    recover_folder,
    replacing_file,
    replacing_folder,
)
from tests.support import ROOT

# Kills itself outright, as the kernel would, in the middle of replacing argv[1].
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from mla_ray.runtime.atomic import replacing_folder
kill_at, renames, rename = sys.argv[2], 0, Path.rename
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def rename_or_die(self, target):
    global renames
    renames += 1
    made = rename(self, target)
    if kill_at == f"rename {renames}":
        die()
    return made
def rmtree_or_die(path, **options):
    for file in sorted(Path(path).iterdir())[:1]:
        file.unlink()
    die()
Path.rename = rename_or_die
if kill_at == "removal":
    shutil.rmtree = rmtree_or_die
with replacing_folder(Path(sys.argv[1])) as scratch:
    (scratch / "a").write_text("new")
    if kill_at == "writing":
        die()
    (scratch / "b").write_text("new")
"""


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as scratch:
        for name in ("a", "b"):
            (scratch / name).write_text(text)


def read(folder: Path) -> str:
    """What is in both files; a ValueError if they are of two writers."""
    first, second = ((folder / name).read_text() for name in ("a", "b"))
    if first != second:
        raise ValueError(f"{first} and {second}")
    return first


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill(folder: Path, kill_at: str) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), kill_at]
    killed = subprocess.run(
        command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -9


def test_a_folder_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "x" / "de", "one")
    (tmp_path / "x" / "de" / "more").touch()
    write(tmp_path / "x" / "de", "two")
    assert read(tmp_path / "x" / "de") == "two"
    assert names(tmp_path / "x" / "de") == ["a", "b"]
    assert names(tmp_path / "x") == ["de"]


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "de", "one")
    with pytest.raises(TypeError), replacing_folder(tmp_path / "de") as scratch:
        (scratch / "a").write_text(2)  # type: ignore[arg-type]
    assert read(tmp_path / "de") == "one"
    assert names(tmp_path) == ["de"]


def test_one_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "de", "one")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if "-new-" in self.name:
            raise PermissionError(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(PermissionError):
            write(tmp_path / "de", "two")
    assert read(tmp_path / "de") == "one"
    assert names(tmp_path) == ["de"]


@pytest.mark.parametrize("next_one", ["settle", "read", "write"])
@pytest.mark.parametrize(
    ("kill_at", "found"),
    [
        ("writing", "old"),
        ("rename 1", "old"),  # nothing is in the place
        ("rename 2", "new"),
        ("rename 3", "new"),
        ("removal", "new"),
    ],
)
def test_who_comes_next_mends_what_a_killed_writer_left(
    tmp_path: Path, kill_at: str, found: str, next_one: str
) -> None:
    folder = tmp_path / "de"
    write(folder, "old")
    write(tmp_path / "de-new-x", "another's")
    kill(folder, kill_at)
    assert len(names(tmp_path)) > 2
    if next_one == "settle":
        recover_folder(folder)
        assert read(folder) == found
    elif next_one == "read":
        assert read_consistently(folder, lambda: read(folder)) == found
    else:
        write(folder, "newer")
        assert read(folder) == "newer"
    assert names(tmp_path) == ["de", "de-new-x"]
    assert read(tmp_path / "de-new-x") == "another's"


def test_what_0_1_0_left_under_the_id_of_its_process_is_put_back(tmp_path: Path) -> None:
    write(tmp_path / "de", "old")
    (tmp_path / "de").rename(tmp_path / ".de-old-7")
    assert read_consistently(tmp_path / "de", lambda: read(tmp_path / "de")) == "old"
    (tmp_path / ".de-old-7").mkdir()  # killed after both renames
    write(tmp_path / "de", "new")
    assert names(tmp_path) == ["de"]


def test_names_tell_whose_they_are() -> None:
    found = [".de-old-0a1b2c3d", ".zh-Hant-new-12", ".a-new-b-old-00000000", ".sw.lock"]
    others = ["de", ".de", ".de-old-", ".de-old-xyz", "de-old-12345678", ".git", "de.lock"]
    assert folders_in_replacement(found + others) == {"de", "zh-Hant", "a-new-b", "sw"}


def test_nobody_disturbs_a_writer_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "de"
    write(folder, "old")
    with replacing_folder(folder) as scratch:
        (scratch / "a").write_text("new")
        recover_folder(folder)  # by another
        assert read_consistently(folder, lambda: read(folder)) == "old"
        waiting = threading.Thread(target=write, args=(folder, "newest"))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (scratch / "b").write_text("new")
    waiting.join()
    assert read(folder) == "newest"
    assert names(tmp_path) == ["de"]


def test_a_writer_may_read_the_place_it_writes(tmp_path: Path) -> None:
    folder = tmp_path / "de"
    write(folder, "old")
    with replacing_folder(folder) as scratch:
        assert read_consistently(folder, lambda: read(folder)) == "old"
        with pytest.raises(FileNotFoundError):
            read_consistently(folder, lambda: read(folder / "no such"))
        for name in ("a", "b"):
            (scratch / name).write_text("new")
    assert read(folder) == "new"
    with pytest.raises(FileNotFoundError):  # one inside the other
        read_consistently(
            folder, lambda: read_consistently(folder, lambda: read(folder / "no such"))
        )
    assert names(tmp_path) == ["de"]


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_what_is_wrong_and_stays_so_is_told(tmp_path: Path, kind: type[Exception]) -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise kind("no such thing")

    with pytest.raises(kind, match="no such thing"):
        read_consistently(tmp_path / "nowhere" / "de", fail)
    assert len(tries) == 2
    assert names(tmp_path) == []


def test_a_disk_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    write(tmp_path / "de", "one")
    write(tmp_path / "de", "two")
    assert read_consistently(tmp_path / "de", lambda: read(tmp_path / "de")) == "two"
    assert names(tmp_path) == ["de"]


def _write_often(folder: Path, name: str, rounds: int) -> None:
    for number in range(rounds):
        write(folder, f"{name} {number}")


def _read_often(folder: Path, rounds: int) -> None:
    for _ in range(rounds):
        read_consistently(folder, lambda: read(folder))


def test_two_write_and_one_reads_and_none_fails(tmp_path: Path) -> None:
    folder = tmp_path / "de"
    write(folder, "first")
    tasks: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (_write_often, (folder, "a", 150)),
        (_write_often, (folder, "b", 150)),
        (_read_often, (folder, 1_000)),
    ]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=task, args=given) for task, given in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert read(folder) in {"a 149", "b 149"}
    assert names(tmp_path) == ["de"]


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    with replacing_file(path) as scratch:
        scratch.write_text("old")
        assert scratch.suffix == ".txt"
        assert not path.exists()
    with pytest.raises(TypeError), replacing_file(path) as scratch:
        scratch.write_text(3)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert names(path.parent) == ["a.txt"]


# Holds argv[1] until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from mla_ray.runtime.atomic import one_process
with one_process(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_process_s_as_long_as_that_lives(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sw"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"sw is in use by process {holder.pid} on "):
            one_process(folder).__enter__()
        with one_process(folder.with_name("de")):  # not of others
            pass
        holder.kill()
        holder.wait()
    with one_process(folder), pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "):
        one_process(folder).__enter__()
    with one_process(folder):
        pass
    assert not list(folder.parent.iterdir())  # nothing is left beside it
    with one_process(tmp_path / "none" / "sw"):
        pass
    assert not (tmp_path / "none").exists()
