"""The files of a pack, and how they are fetched: each there, and none larger than allowed."""

import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from upath import UPath

from mla_ray.runtime.storage import fetch, patiently

README = "README.md"
MAX_FILE_BYTES = {
    "weights.safetensors": 2 << 30,
    "tokenizer.json": 64 << 20,
    "card.json": 1 << 20,
    README: 1 << 20,
}
NEEDED = ("weights.safetensors", "tokenizer.json", "card.json")
"""What no pack may lack."""


class PackError(ValueError):
    """A pack that is damaged, not a pack, or made for another native."""


def check_file(path: Path | UPath) -> None:
    """PackError, naming the file, if it is missing or too large. OSError if it is out of reach."""
    try:
        found = path.stat()  # not `is_file`, which says False of a storage that is away
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or stat.S_ISDIR(found.st_mode):
        raise PackError(f"{path}: missing; a language pack is a folder with {list(NEEDED)}")
    check_size(path, found.st_size)


def check_size(path: object, size: int | None) -> None:
    """PackError if a file of a pack has more bytes than allowed, or nobody knows how many."""
    limit = MAX_FILE_BYTES[str(path).rpartition("/")[2]]
    if size is None:
        raise PackError(f"{path}: of unknown size; at most {limit} bytes are taken")
    if size > limit:
        raise PackError(f"{path}: larger than {limit} bytes")


def check_sizes(sizes: Mapping[str, int | None], where: str) -> None:
    """PackError unless the files in `where`, of these sizes by name, are those of a pack."""
    for name in NEEDED:
        if name not in sizes:
            raise PackError(f"{where}/{name}: missing; a language pack has {list(NEEDED)}")
    for name in MAX_FILE_BYTES.keys() & sizes:
        check_size(f"{where}/{name}", sizes[name])


def fetch_files(
    source: UPath,
    folder: Path,
    names: Iterable[str] = NEEDED,
    pauses: Sequence[float] | None = None,
) -> None:
    """Copy files of the pack in `source` to a folder of this machine.

    Raises:
        PackError: one is missing or too large; none that is gets copied.
        OSError: the storage stays away.

    """
    for name in names:
        path = source / name
        patiently(partial(check_file, path), pauses, f"reading {path}")
        fetch(path, folder / name, pauses)
