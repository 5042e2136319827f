"""The folder of an embedded collection: whose it is, and how much room there is.

It holds a shard a version, `space.json` (the record), `current` (the version's name) and `lock`. A
shard holds `segments`, what is searched, and `wal`, the log of the last writes.
"""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mla_ray.runtime.atomic import one_process

RESERVE = 16 * 2**20
"""Bytes that stay free. The engine writes through mapped files, and a page of one that finds no
room ends the process (SIGBUS); so does a shard that is merely opened."""
PIECE = 2**20
"""Bytes copied at a time."""


@contextmanager
def owning(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep a folder for this process; `shared`: keep owners out.

    The engine locks a shard, not the choice between versions, and says "WouldBlock".

    Raises:
        RuntimeError: it has an owner; says which.

    """
    with ExitStack() as held:
        try:
            held.enter_context(one_process(folder, folder / "lock", shared=shared))
        except BlockingIOError as error:
            raise RuntimeError(
                f"{error}; it is open already, and can have one owner: close it there, or use a "
                "Qdrant server (http://…) for several"
            ) from error
        yield


def is_writable(folder: Path) -> bool:
    """Whether this process may write to a folder and to what is in it."""
    inside = [folder / "lock", folder / "current"]
    for path in folder.iterdir():
        if path.is_dir():
            inside += [path, path / "segments", path / "edge_config.json"]
    return all(os.access(path, os.W_OK) for path in [folder, *inside] if path.exists())


@contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """A copy of a folder that has no owner meanwhile, in the folder for temporary files.

    Goes away at the end. The engine cannot open a shard without writing to it: it locks, maps and
    flushes its files. Links to them would not do, as it may change what they name.
    """
    with tempfile.TemporaryDirectory(prefix="mla-index-") as made:
        copy = Path(made) / folder.name
        with owning(folder, shared=True):
            purpose, size = f"a copy of {folder}, which is read-only", occupied(folder)
            require_space(Path(made), size, purpose)
            if fills_holes(Path(made)):
                require_space(Path(made), size + holes(folder), purpose)
            for around, _, names in os.walk(folder):
                into = copy / Path(around).relative_to(folder)
                into.mkdir()  # not with the modes of what it is of
                for name in names:
                    _copy_data(Path(around) / name, into / name)
        yield copy


def occupied(path: Path) -> int:
    """Bytes that the files in a folder take; holes in them take none."""
    return sum(stat.st_blocks * 512 for stat in _stats(path))


def holes(path: Path) -> int:
    """Bytes of the files in a folder that have no room yet."""
    return sum(max(0, stat.st_size - stat.st_blocks * 512) for stat in _stats(path))


def fills_holes(folder: Path) -> bool:
    """Whether a hole in a file comes to take room when it is read: on a tmpfs, but on no disk.

    Takes a page to find out, so there has to be room for one.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 0) as pages:
            pages.read_byte()
            return os.fstat(file.fileno()).st_blocks > 0


def _stats(path: Path) -> Iterator[os.stat_result]:
    for around, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # the engine has just put it away
                yield (Path(around) / name).stat()


def require_space(folder: Path, size: int, purpose: str) -> None:
    """Raise an OSError (ENOSPC) unless there is room for `size` bytes beside `RESERVE`."""
    around = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = size + RESERVE, shutil.disk_usage(around).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"too little space for {purpose}: {needed / 1e6:,.0f} MB are needed, "
            f"{free / 1e6:,.0f} MB are free; what is there is kept, so free some and run it again",
            str(folder),
        )


def _copy_data(source: Path, target: Path) -> None:
    """Copy a file, leaving holes as holes: most of the engine's files are holes."""
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        end = 0
        while end < size:
            try:
                start = os.lseek(old.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no more data
                    return
                raise
            end = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            old.seek(start)
            new.seek(start)
            for begin in range(start, end, PIECE):
                new.write(old.read(min(PIECE, end - begin)))
