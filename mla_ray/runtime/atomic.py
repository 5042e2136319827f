"""Atomic replacement of local files and folders: a reader sees the old content or the new.

A file is written beside its target and renamed over it. No system call replaces a folder that is
not empty. A folder therefore takes two renames: `de` to `.de-old-…`, then `.de-new-…` to `de`.
Between them `de` does not exist. If a writer is killed at that point, the next process that writes
the folder, reads it or lists its parent restores it. Writers of the same folder wait for each
other. A reader waits for a writer only if its first read failed.
"""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

# mla-ray 0.1.0 used the process id, in decimal digits, as the last part of the name.
_BESIDE = re.compile(r"\.(?P<place>.+)(\.lock|-(?P<kind>old|new)-([0-9a-f]{8}|[0-9]+))")

COMMAND = 200
"""Most characters of a command line that a lock file stores."""

T = TypeVar("T")

_mine = threading.local()


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces `path` when the `with` block ends.

    The scratch file has the suffix of `path` and lies in the same folder. Missing parent folders
    are created. If the block raises, `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield scratch
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):  # the caller must see the first error
            scratch.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` when the `with` block ends.

    If the block raises, `folder` stays as it was. Other writers of `folder` wait until the block
    ends.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as alone:
        if alone:
            _clear(folder)
        scratch = _beside(folder, "new")
        scratch.mkdir()
        try:
            yield scratch
            scratch.chmod(0o755)
            if folder.exists():
                scratch = _exchanged(folder, scratch)
            else:
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Restore `folder` after its writer was killed, and delete the writer's leftovers.

    Does nothing while another writer is at work.
    """
    if next(_left(folder), None):
        with _alone(folder, wait=False) as alone:
            if alone:
                _clear(folder)


def folders_in_replacement(names: Iterable[str]) -> set[str]:
    """Return the names of the folders that these lock files, backups and scratch folders belong to.

    A writer of such a folder is at work or was killed. `recover_folder` handles both cases.
    """
    return {match["place"] for name in names if (match := _BESIDE.fullmatch(name))}


def read_consistently(folder: Path, read: Callable[[], T]) -> T:
    """Return `read()` for a folder that other processes may replace at the same time.

    If `read` raises a ValueError or an OSError, it is called once more while no writer is at work.
    """
    recover_folder(folder)
    with suppress(ValueError, OSError):
        return read()
    with _alone(folder) as alone:
        if alone:
            _clear(folder)
        return read()


@contextmanager
def one_process(folder: Path, lock: Path | None = None, *, shared: bool = False) -> Iterator[None]:
    """Lock `folder` against other processes for the `with` block.

    `folder` need not exist. If the file system has no locks, nothing is locked.

    Args:
        folder: The folder to lock.
        lock: The lock file, which is kept afterwards. By default it is a file beside `folder`,
            which is deleted afterwards.
        shared: Take a shared lock, as several readers may at the same time. It excludes only
            owners of the exclusive lock, and needs no write permission.

    Raises:
        BlockingIOError: Another process, or another part of this process, holds the lock. The
            message gives its process id, host and command.

    """
    path = lock or _lock_of(folder)
    around = path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _lock(path, wait=False, shared=shared)
    except BlockingIOError as error:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(errors="replace")
        holder = holder or "another process"
        raise BlockingIOError(f"{folder} is in use by {holder}") from error
    if file is None:
        yield
        return
    try:
        if not shared:
            os.ftruncate(file, 0)  # an owner that was killed leaves its text
            os.write(file, _this_process().encode(errors="replace"))
        yield
    finally:
        if lock and not shared:
            os.ftruncate(file, 0)
        elif not lock:
            path.unlink(missing_ok=True)
        os.close(file)
        if not around:
            with suppress(OSError):  # the folder may have content by now
                path.parent.rmdir()


def _this_process() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    if len(command) > COMMAND:
        command = f"{command[:COMMAND]} …"
    return f"process {os.getpid()} on {socket.gethostname()} ({command})"


def _exchanged(folder: Path, new: Path) -> Path:
    """Move `new` to `folder` and return where the old folder is afterwards.

    The old folder gets the name of a scratch folder, so that recovery does not restore it.
    """
    old = folder.rename(_beside(folder, "old"))
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    return old.rename(_beside(folder, "new"))


def _clear(folder: Path) -> None:
    """Restore the latest backup if `folder` is missing, and delete all other leftovers.

    No writer may be at work.
    """
    left = list(_left(folder))
    old = [path for path, kind in left if kind == "old"]
    if old and not folder.exists():
        max(old, key=lambda path: path.stat().st_ctime).rename(folder)
    for path, kind in left:
        if kind:  # the owner of the lock file deletes it
            shutil.rmtree(path, ignore_errors=True)


def _left(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield path and kind of what writers keep beside `folder`: "old", "new", None for the lock."""
    try:
        beside = list(folder.parent.iterdir())
    except OSError:
        return
    for path in beside:
        match = _BESIDE.fullmatch(path.name)
        if match and match["place"] == folder.name:
            yield path, match["kind"]


def _beside(folder: Path, kind: Literal["old", "new"]) -> Path:
    return folder.with_name(f".{folder.name}-{kind}-{secrets.token_hex(4)}")


@contextmanager
def _alone(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Lock `folder` for writing during the `with` block and yield whether that succeeded.

    Yields False in these cases: this thread already holds the lock; another writer holds it and
    `wait` is False; the parent folder is missing or not writable; the file system has no locks.
    """
    path = _lock_of(folder)
    ours: set[Path] = _mine.__dict__.setdefault("locks", set())
    lock = None
    if path not in ours:
        with suppress(BlockingIOError):
            lock = _lock(path, wait)
    if lock is None:
        yield False
        return
    ours.add(path)
    try:
        yield True
    finally:
        ours.discard(path)
        path.unlink(missing_ok=True)
        os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _lock(path: Path, wait: bool, shared: bool = False) -> int | None:
    """Open and lock a lock file, and return its descriptor; None if locking is not possible here.

    A shared lock does not create the file: without a file the result is None.

    The owner may delete the file when it releases the lock. A process that waited then holds the
    lock of a deleted file, so it starts over.

    Raises:
        BlockingIOError: Another owner holds the lock, and `wait` is False.

    """
    while True:
        try:
            file = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BlockingIOError:
            os.close(file)
            raise
        except OSError:  # the file system has no locks
            if not shared:
                path.unlink(missing_ok=True)
            os.close(file)
            return None
        os.close(file)
