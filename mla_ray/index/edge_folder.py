"""Folder of an embedded collection: ownership, read-only copies and disk space.

The folder has one shard per version, `space.json` (the record), `current` (the name of the current
version) and `lock`. A shard has `segments`, which are searched, and `wal`, the log of the last
writes.
"""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mla_ray.index.edge_settings import CONFIG_FILE
from mla_ray.runtime.atomic import one_process

RESERVE = 16 * 2**20
"""Bytes of disk space that stay free. The engine writes to memory-mapped files. If the disk has no
space for a page, the process ends with SIGBUS. Opening a shard can do the same."""
PIECE = 2**20
"""Bytes that are copied at a time."""


@contextmanager
def owning(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Own a folder for the `with` block.

    The engine locks only a shard, not the folder with its versions, and its error is only
    "WouldBlock".

    Args:
        folder: The folder of a collection.
        shared: Only exclude owners, as readers do.

    Raises:
        RuntimeError: The folder has an owner. The message names it.

    """
    with ExitStack() as held:
        try:
            held.enter_context(one_process(folder, folder / "lock", shared=shared))
        except BlockingIOError as error:
            raise RuntimeError(
                f"{error}; it is open already, and can have only one owner: close it there, or use "
                "a Qdrant server (http://…) for several processes"
            ) from error
        yield


def is_writable(folder: Path) -> bool:
    """Return whether this process may write to the folder and to its shards."""
    inside = [folder / "lock", folder / "current"]
    for path in folder.iterdir():
        if path.is_dir():
            inside += [path, path / "segments", path / CONFIG_FILE]
    return all(os.access(path, os.W_OK) for path in [folder, *inside] if path.exists())


@contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """Yield a temporary copy of a folder, and delete it afterwards.

    The folder must not have an owner while it is copied. A copy is needed because the engine writes
    to every shard that it opens: it locks, maps and flushes the files. Links to the files are not
    enough, because the engine may change the files.

    Raises:
        RuntimeError: The folder has an owner.
        OSError: There is too little disk space (ENOSPC).

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
                into.mkdir()  # does not copy the mode, which may be read-only
                for name in names:
                    _copy_data(Path(around) / name, into / name)
        yield copy


def occupied(path: Path) -> int:
    """Return the bytes that the files in a folder take on disk, without holes of sparse files."""
    return sum(stat.st_blocks * 512 for stat in _stats(path))


def holes(path: Path) -> int:
    """Return the bytes in holes of the files in a folder, for which no disk space is allocated."""
    return sum(max(0, stat.st_size - stat.st_blocks * 512) for stat in _stats(path))


def fills_holes(folder: Path) -> bool:
    """Return whether reading a hole of a sparse file allocates space, as on a tmpfs.

    Tests it with a temporary file, so there must be space for one page.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 0) as pages:
            pages.read_byte()
            return os.fstat(file.fileno()).st_blocks > 0


def _stats(path: Path) -> Iterator[os.stat_result]:
    for around, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # the engine may delete a file at any time
                yield (Path(around) / name).stat()


def require_space(folder: Path, size: int, purpose: str) -> None:
    """Raise an OSError (ENOSPC) unless `size` bytes and `RESERVE` are free.

    Args:
        folder: Where the data will be written. It need not exist.
        size: Bytes that will be written.
        purpose: What needs the space, for the message.

    """
    around = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = size + RESERVE, shutil.disk_usage(around).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"too little space for {purpose}: {needed / 1e6:,.0f} MB are needed, "
            f"{free / 1e6:,.0f} MB are free; existing data is kept: free some space and try again",
            str(folder),
        )


def _copy_data(source: Path, target: Path) -> None:
    """Copy a sparse file and keep its holes: the engine's files consist mostly of holes."""
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
