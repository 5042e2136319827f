"""The files of a pack, their size limits, and how they are fetched."""

import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from upath import UPath

from mla_ray.runtime.storage import fetch, patiently

README = "README.md"
"""File name of the model card."""
MAX_FILE_BYTES = {
    "weights.safetensors": 2 << 30,
    "tokenizer.json": 64 << 20,
    "card.json": 1 << 20,
    README: 1 << 20,
}
"""Files of a pack and the maximum size of each in bytes."""
NEEDED = ("weights.safetensors", "tokenizer.json", "card.json")
"""Files that every pack must have."""


class PackError(ValueError):
    """Error for a pack that is damaged, invalid, or made for another native."""


def check_file(path: Path | UPath) -> None:
    """Check that a file of a pack exists and is not too large.

    Raises:
        PackError: The file is missing or too large. The message names the file.
        OSError: The storage is not available.

    """
    try:
        found = path.stat()  # `is_file` would return False for storage that is not available
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or stat.S_ISDIR(found.st_mode):
        raise PackError(f"{path}: missing; a language pack is a folder with {list(NEEDED)}")
    check_size(path, found.st_size)


def check_size(path: object, size: int | None) -> None:
    """Check the size of a file of a pack.

    Args:
        path: Path whose last part is a key of `MAX_FILE_BYTES`.
        size: Size in bytes, or None if unknown.

    Raises:
        PackError: The size is unknown or too large.

    """
    limit = MAX_FILE_BYTES[str(path).rpartition("/")[2]]
    if size is None:
        raise PackError(f"{path}: of unknown size; at most {limit} bytes are accepted")
    if size > limit:
        raise PackError(f"{path}: larger than {limit} bytes")


def check_sizes(sizes: Mapping[str, int | None], where: str) -> None:
    """Check that all needed files of a pack exist and that no file is too large.

    Args:
        sizes: Size in bytes by file name.
        where: Name of the place for the message.

    Raises:
        PackError: A needed file is missing, or a size is unknown or too large.

    """
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
    """Copy files of the pack at `source` to a local folder.

    Args:
        source: Path or URL of the pack.
        folder: Local folder.
        names: Names of the files.
        pauses: Seconds between retries while the storage is not available. The default is
            `storage.PAUSES`.

    Raises:
        PackError: A file is missing or too large. Such a file is not copied.
        OSError: The storage is not available after the last retry.

    """
    for name in names:
        path = source / name
        patiently(partial(check_file, path), pauses, f"reading {path}")
        fetch(path, folder / name, pauses)
