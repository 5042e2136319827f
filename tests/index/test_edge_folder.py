"""Promises of mla_ray.index.edge_folder: one owner, who is named; what may not be written to is
searched all the same; and no write begins that finds no room."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from mla_ray.index import edge_folder
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.encoders import Encoders
from mla_ray.index.entry import Entry
from mla_ray.index.ingest import index_captions, space_of
from mla_ray.index.writing import open_collections
from mla_ray.model.native import Native
from tests.support.disks import MB, mounted_disk, mounted_memory

SPACE = VectorSpace("emoji-clip", "0123456789abcdef", 16)
ENTRIES = [Entry(f"c{i:03}", f"i{i}", "de", f"caption {i}", "a") for i in range(100)]
VECTORS = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with CaptionIndex.open(f"edge:{tmp_path / 'index'}", SPACE) as index:
        index.upsert(ENTRIES, VECTORS)
    return tmp_path / "index"


# Holds the folder argv[1] until it is killed.
HOLDER = f"""
import sys, time
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
index = CaptionIndex.open(f"edge:{{sys.argv[1]}}", {SPACE!r})
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_says_who_has_it(folder: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(RuntimeError, match="one owner") as refusal:
                CaptionIndex.open(f"edge:{folder}", SPACE)
        finally:
            holder.kill()
            holder.wait()
        assert f"captions is in use by process {holder.pid} on " in str(refusal.value)
        assert f"{folder}); it is open already" in str(refusal.value)  # the command
    with CaptionIndex.open(f"edge:{folder}", SPACE) as index:
        assert index.count() == 100
    assert (folder / "captions" / "lock").read_text() == ""  # names nobody who has left


def test_a_folder_with_an_owner_is_refused_before_anything_is_encoded(
    tmp_path: Path, native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*arguments: object) -> None:
        raise AssertionError("encoded")

    url = f"edge:{tmp_path}"
    monkeypatch.setattr(Encoders, "encode_images", unwanted)
    monkeypatch.setattr(Encoders, "encode_captions", unwanted)
    row = {"image_id": "1", "image": b"", "language": "en", "caption": "a dog"}
    for name in (IMAGES, CAPTIONS):
        with (
            CaptionIndex.open(url, space_of(native), name),
            pytest.raises(RuntimeError, match=f"process {os.getpid()} on "),
        ):
            index_captions(url, native, {}, pa.Table.from_pylist([row]), "a")


# As a user who may read the folder argv[1] and no more; what it prints is what the test wants.
READER = f"""
import os, sys
import numpy as np
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.writing import open_collections
from mla_ray.index.entry import Entry
folder = sys.argv[1]
CaptionIndex.open(f"edge:{{sys.argv[2]}}", {SPACE!r}).close()  # all that is loaded when first used
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with CaptionIndex.open(f"edge:{{folder}}", {SPACE!r}) as index:
    print(index.count(), [hit.entry.id for hit in index.search(np.ones(16, np.float32), 5)])
    for write in (
        lambda: index.upsert([Entry("c", "i", "de", "x", "a")], np.ones((1, 16), np.float32)),
        lambda: index.delete([Entry("c000", "i0", "de", "caption 0", "a")]),
        lambda: index.rebuild().__enter__(),
        lambda: open_collections(f"edge:{{folder}}", {SPACE!r}).__enter__(),
    ):
        try:
            write()
        except PermissionError as error:
            print(error)
print(os.listdir(os.environ["TMPDIR"]))
"""


def test_a_folder_that_may_only_be_read_is_searched(folder: Path, tmp_path: Path) -> None:
    with CaptionIndex.open(f"edge:{folder}", SPACE, IMAGES) as index:
        index.upsert(ENTRIES, VECTORS)
    with CaptionIndex.open(f"edge:{folder}", SPACE) as index:
        best = [hit.entry.id for hit in index.search(np.ones(16, np.float32), 5)]
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o777)
    for around in [tmp_path, *tmp_path.parents]:  # pytest's own, in which another user is lost
        if around.name.startswith(("pytest-", "popen-", "test_")):
            around.chmod(around.stat().st_mode | 0o011)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    reader = subprocess.run(
        [sys.executable, "-c", READER, str(folder), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    assert reader.stderr == ""
    count, *refused, left = reader.stdout.splitlines()
    assert count == f"100 {best}"
    assert len(refused) == 4
    for line in refused:
        assert "the index is read-only for this process" in line
        assert str(folder) in line
    assert left == "[]"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_space_is_said_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1000 * MB
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**12, 0, free))
    url = f"edge:{folder}"
    index = CaptionIndex.open(url, SPACE)
    free = 3 * MB
    for write in (
        lambda: index.upsert([Entry("new", "i", "de", "x", "a")], VECTORS[:1]),
        lambda: index.delete(ENTRIES),
        lambda: index.rebuild().__enter__(),
        index.optimize,
    ):
        with pytest.raises(OSError, match="17 MB are needed, 3 MB are free") as refusal:
            write()
        assert refusal.value.errno == errno.ENOSPC
        assert str(folder) in str(refusal.value)
    assert set(index.entries()) == set(ENTRIES)
    assert index.upsert(ENTRIES, VECTORS) == 100  # they are there
    index.close()
    for name in ("captions", "another"):
        with pytest.raises(OSError, match="opening an index"):
            CaptionIndex.open(url, SPACE, name)
    assert not (folder / "another").exists()
    free = 17 * MB
    with CaptionIndex.open(url, SPACE) as index:
        assert set(index.entries()) == set(ENTRIES)


@pytest.fixture(params=["disk", "memory"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB, or a tmpfs of 200 MB, on which holes in files are filled by reading."""
    disk = request.param == "disk"
    mounted = mounted_disk(tmp_path, 60 * MB) if disk else mounted_memory(tmp_path, 200 * MB)
    with mounted as at:
        yield at


# Writes to the folder argv[1] until it is told that there is no room; then how much is in it.
FILLER = """
import sys
import numpy as np
from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.entry import Entry
space = VectorSpace("emoji-clip", "0123456789abcdef", 512)
written = 0
try:
    with CaptionIndex.open(f"edge:{sys.argv[1]}", space) as index:
        written = index.count()
        for number in range(1000):
            entries = [Entry(f"{number}-{i}", "i", "de", "caption", "a") for i in range(256)]
            vectors = np.random.default_rng(number).normal(size=(256, 512)).astype(np.float32)
            written = max(written, 256 * number + index.upsert(entries, vectors))
except OSError as error:
    print(written, error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_ends_no_process(small_disk: Path) -> None:
    """The engine's own answer is SIGBUS, when it writes and when it opens a folder."""
    folder = small_disk / "index"
    command = [sys.executable, "-c", FILLER, str(folder)]
    counts = []
    for _ in range(2):
        filler = subprocess.run(command, capture_output=True, text=True)
        assert filler.returncode == 0, filler.stderr
        written, message = filler.stdout.split(" ", 1)
        assert "too little space for" in message
        counts.append(int(written))
    assert counts[0] >= 1024
    with pytest.raises(OSError, match="No space"):
        (small_disk / "fill").write_bytes(bytes(200 * MB))
    filler = subprocess.run(command, capture_output=True, text=True)
    assert filler.returncode == 0, filler.stderr
    assert "too little space for opening an index" in filler.stdout
    (small_disk / "fill").unlink()
    if not (small_disk.parent / "image").exists():  # in memory it may need more than it was left
        remount = ["mount", "-o", "remount,size=500m", str(small_disk)]
        subprocess.run(remount, check=True)
    space = VectorSpace("emoji-clip", "0123456789abcdef", 512)
    with CaptionIndex.open(f"edge:{folder}", space, create=False) as index:
        assert index.count() == max(counts)


def test_a_copy_has_the_holes_of_what_it_is_of(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    folder.mkdir()
    with (folder / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(40 * MB)
        file.write(b"middle")
        file.truncate(100 * MB)
    (folder / "empty").touch()
    (folder / "hole").touch()
    os.truncate(folder / "hole", MB)
    with edge_folder.private_copy(folder) as copy:
        for path in folder.iterdir():
            assert (copy / path.name).read_bytes() == path.read_bytes()
        assert edge_folder.occupied(copy) < MB
    assert not copy.exists()


def test_a_folder_with_an_owner_is_not_copied(folder: Path) -> None:
    with (
        CaptionIndex.open(f"edge:{folder}", SPACE),
        pytest.raises(RuntimeError, match=f"process {os.getpid()} on "),
        edge_folder.private_copy(folder / "captions"),
    ):
        pass


def test_both_collections_are_opened_or_none(tmp_path: Path) -> None:
    url = f"edge:{tmp_path}"
    with CaptionIndex.open(url, SPACE, CAPTIONS):
        with pytest.raises(RuntimeError, match="one owner"), open_collections(url, SPACE):
            pass
        CaptionIndex.open(url, SPACE, IMAGES).close()
