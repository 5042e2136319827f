"""Files and folders of this machine that are replaced as one: a reader finds the old or the new.

A file is renamed onto the one before it. No call replaces a folder that is not empty, so it takes
two renames, of `de` to `.de-old-…` and of `.de-new-…` to `de`, and between them nothing is in the
place. What a writer leaves who is killed there, the next one who writes or reads the folder, or
lists the one around it, puts back. Writers of one place come one after another; a reader waits for
one only if it found something wrong.
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

# In mla-ray 0.1.0 the last word was the id of the process.
_BESIDE = re.compile(r"\.(?P<place>.+)(\.lock|-(?P<kind>old|new)-([0-9a-f]{8}|[0-9]+))")

COMMAND = 200
"""Characters of a command that its lock tells."""

T = TypeVar("T")

_mine = threading.local()


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A file to write in the body of a `with`, which in the end stands in the place of `path`.

    Its name ends as that of `path` does. An exception leaves `path` as it was. Folders around it
    are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield scratch
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):  # the error to tell of is the first
            scratch.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for the body of a `with`, which in the end stands in the place of `folder`.

    An exception leaves `folder` as it was. Another writer of the same place waits.
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
    """Put back, or clear away, what a killed writer of `folder` left; nothing while one writes."""
    if next(_left(folder), None):
        with _alone(folder, wait=False) as alone:
            if alone:
                _clear(folder)


def folders_in_replacement(names: Iterable[str]) -> set[str]:
    """The places that files and folders of these names belong to while a writer is at work there.

    Or was: whether it still is, `recover_folder` finds out.
    """
    return {match["place"] for name in names if (match := _BESIDE.fullmatch(name))}


def read_consistently(folder: Path, read: Callable[[], T]) -> T:
    """What `read` finds in a folder that others may replace meanwhile.

    If it raises a ValueError or an OSError it is called once more, with no writer at work.
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
    """Keep `folder` for this process in the body of a `with`; it need not be there.

    Where there are no locks to be had, nobody is kept out.

    Args:
        folder: to be kept.
        lock: the lock's file, which stays when its owner goes. If not given, it is beside `folder`
            and goes with its owner.
        shared: keep it from owners only, as others may who read. Needs no right to write.

    Raises:
        BlockingIOError: another process has it, or another part of this one; says which: its id,
            host and command.

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
            os.ftruncate(file, 0)  # of an owner that was killed
            os.write(file, _this_process().encode(errors="replace"))
        yield
    finally:
        if lock and not shared:
            os.ftruncate(file, 0)
        elif not lock:
            path.unlink(missing_ok=True)
        os.close(file)
        if not around:
            with suppress(OSError):  # by now something is in it
                path.parent.rmdir()


def _this_process() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    if len(command) > COMMAND:
        command = f"{command[:COMMAND]} …"
    return f"process {os.getpid()} on {socket.gethostname()} ({command})"


def _exchanged(folder: Path, new: Path) -> Path:
    """Put `new` in the place of `folder`; where the old one is then, not to be put back."""
    old = folder.rename(_beside(folder, "old"))
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    return old.rename(_beside(folder, "new"))


def _clear(folder: Path) -> None:
    """What is beside a place where no writer is: back into it if it is empty, else away."""
    left = list(_left(folder))
    old = [path for path, kind in left if kind == "old"]
    if old and not folder.exists():
        max(old, key=lambda path: path.stat().st_ctime).rename(folder)
    for path, kind in left:
        if kind:  # the lock's file goes with its owner
            shutil.rmtree(path, ignore_errors=True)


def _left(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """What writers of a place have beside it: "old" and "new", and None, the lock's file."""
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
    """The lock of a place, for the body of a `with`.

    False if there is none to be had: this thread has it already, or another writer who is not
    waited for; the folder around is missing or not ours to write in; the file system has no locks.
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
    """The lock's file, opened and locked; None if no locks are to be had here.

    `shared` with others who ask for that; then it is None, too, if nobody has made the file.

    BlockingIOError if another has it, who is not waited for.

    It goes with its owner, so whoever waited for it has the lock of a file that is gone, and begins
    anew.
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
        except OSError:  # no locks here
            if not shared:
                path.unlink(missing_ok=True)
            os.close(file)
            return None
        os.close(file)
