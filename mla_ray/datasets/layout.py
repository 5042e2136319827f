"""Descriptions of public datasets on disk, and streaming readers for their file formats.

These datasets may not be redistributed. Users download each one from its publisher and unpack it
below one root folder with the original names. An error names the file, the place in it and the
remedy.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

import ijson
import numpy as np

from mla_ray.datasets.table_writer import Caption, Pair

MAX_LINE = 1 << 20
"""Maximum length of a line in bytes. The longest known one (Crossmodal-3600) has about 30,000."""

T = TypeVar("T")


@dataclass(frozen=True)
class SourceFile:
    """A file or folder of a dataset.

    Args:
        path: Path below the root. A `.gz` file may also be unpacked, without that suffix.
        home: Where to download it.
        count: Published number of lines (a CSV header is not counted), records or files. None if
            it is not published.
        records: ijson prefix of the records that are counted in a JSON file. The empty string
            counts the members of its top-level object.
        languages: Languages that need the file. None means all.
        optional: Whether the dataset can be built without it.

    """

    path: str
    home: str
    count: int | None = None
    records: str = ""
    languages: tuple[str, ...] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Size:
    """Published number of images and captions of a language in a split. None is not published."""

    images: int | None
    captions: int | None = None


@dataclass(frozen=True)
class DataSet:
    """A public dataset and its readers.

    Args:
        name: Name in the catalog and on the command line.
        title: Short description.
        licence: Licenses of the captions and the images.
        languages: BCP-47 codes of the captions.
        files: Files and folders of the dataset.
        captions: Yields the caption rows for a root and some languages. The captions of an image
            in one language are consecutive.
        pairs: Yields the translation rows for a root and one language, from training data only.
        pair_languages: Languages that `pairs` supports.
        sizes: Published sizes by language and split.
        items: What the column `image` holds: "images" or "videos".

    """

    name: str
    title: str
    licence: str
    languages: tuple[str, ...]
    files: tuple[SourceFile, ...]
    captions: Callable[[Path, Sequence[str]], Iterator[Caption]]
    pairs: Callable[[Path, str], Iterator[Pair]] | None = None
    pair_languages: tuple[str, ...] = ()
    sizes: Mapping[tuple[str, str], Size] = field(default_factory=dict)
    items: str = "images"


def find_file(root: Path, path: str) -> Path:
    """Return the file or folder at `path` below the root of a dataset.

    For a `.gz` path, the unpacked file without that suffix is also accepted.

    Raises:
        FileNotFoundError: Neither exists.

    """
    for place in (root / path, root / path.removesuffix(".gz")):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{root / path}: missing; `mla data check NAME --root {root}` says where to download it"
    )


def inside(folder: Path, name: str, place: str) -> Path:
    """Return the path of a listed file in `folder`.

    Args:
        folder: Folder of the files.
        name: Name from a list.
        place: File and row of the name, for the error message.

    Raises:
        ValueError: The name is empty, has a backslash or a character that is not printable, or
            leads out of the folder.

    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or not _plain(name):
        raise ValueError(f"{place}: {name!r} names no file in {folder}; fetch the list anew")
    return folder / path


def _plain(name: str) -> bool:
    return name.isprintable() and "\\" not in name


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line of a UTF-8 file.

    Only a line feed ends a line. A file with the suffix `.gz` is decompressed.

    Raises:
        ValueError: A line is not UTF-8 or is too long, or the gzip data is damaged.

    """
    number = 0
    with _open(path) as file:
        while raw := _readline(file, path, number + 1):
            number += 1
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} line {number}: byte {error.start + 1} is not UTF-8; fetch it anew"
                ) from error
            # str.splitlines would also split at other characters, which occur in captions.
            yield number, text.rstrip("\r\n")


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _readline(file: IO[bytes], path: Path, number: int) -> bytes:
    try:
        line = file.readline(MAX_LINE)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: not gzip, or broken off ({error}); fetch it anew") from error
    if len(line) == MAX_LINE:
        raise ValueError(
            f"{path} line {number}: longer than {MAX_LINE:,} bytes; is it a text file?"
        )
    return line


def names(path: Path) -> list[str]:
    """Return the names in a list with one name per line.

    Raises:
        ValueError: A line is empty or repeats another.

    """
    first: dict[str, int] = {}
    for number, line in lines(path):
        name = line.strip()
        if not name:
            raise ValueError(f"{path} line {number}: no name; take the line out")
        if (earlier := first.setdefault(name, number)) != number:
            raise ValueError(f"{path} line {number}: repeats line {earlier}; take it out")
    return list(first)


def aligned(path: Path, listed: Sequence[str], of: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that is aligned with a list, as number and text.

    Args:
        path: The text file. Its line n belongs to the name n.
        listed: The names.
        of: File of the names, for the error message.

    Raises:
        ValueError: The file has more or fewer lines than the list. The check follows the last line.

    """
    number = 0
    for number, text in lines(path):
        if number <= len(listed):
            yield number, text
    if number != len(listed):
        raise ValueError(
            f"{path}: {number:,} lines, but {of} has {len(listed):,}; the two files must match "
            "line by line; fetch both anew"
        )


def records(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a list in a JSON file, one at a time.

    Args:
        path: The file. It may be larger than memory.
        prefix: ijson prefix of the objects, such as `annotations.item`.

    Raises:
        ValueError: The file is not JSON, the list is missing or empty, or an item is not an object.

    """
    number = 0
    for record in parsed(path, lambda file: ijson.items(file, prefix, use_float=True)):
        number += 1
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} {prefix.removesuffix('.item')} {number}: expected an object, found "
                f"{type(record).__name__}; is it the right file?"
            )
        yield record
    if not number:
        raise ValueError(
            f"{path}: nothing in {prefix.removesuffix('.item')!r}; is it the right file?"
        )


def members(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the names and their captions of a JSON file that is one object of lists of strings.

    Raises:
        ValueError: The file is not such an object, or it is empty.

    """
    number = 0
    for name, value in parsed(path, lambda file: ijson.kvitems(file, "", use_float=True)):
        number += 1
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{path} {name!r}: expected a list of captions; is it the right file?")
        yield name, value
    if not number:
        raise ValueError(f"{path}: the object is empty; is it the right file?")


def parsed(path: Path, values: Callable[[IO[bytes]], Iterator[T]]) -> Iterator[T]:
    """Yield the values that an ijson reader finds in a file.

    Args:
        path: The file.
        values: Calls ijson on the open file.

    Raises:
        ValueError: The file is not JSON, or it is truncated.

    """
    with path.open("rb") as file:
        try:
            yield from values(file)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not JSON, or broken off ({error}); fetch it anew") from error


def member(record: Mapping[str, Any], name: str, kind: type[T], place: str) -> T:
    """Return a member of a JSON object.

    Args:
        record: The object.
        name: Name of the member.
        kind: Required type.
        place: File and row of the object, for the error message.

    Raises:
        ValueError: The member is missing or has another type.

    """
    value = record.get(name)
    if not isinstance(value, kind):
        raise ValueError(
            f"{place}: {name!r} is {value!r:.60}, and {kind.__name__} is needed; is it the right "
            "file?"
        )
    return value


def count(path: Path, file: SourceFile) -> int:
    """Count the lines, records or files of a dataset's file or folder, without loading it.

    Args:
        path: Where it was found.
        file: Its description. `file.records` selects what is counted in a JSON file.

    Raises:
        ValueError: The file is damaged.

    """
    if path.is_dir():
        with os.scandir(path) as entries:
            return sum(entry.is_file() for entry in entries)
    if path.suffix == ".npy":
        return len(array(path))
    if path.suffix == ".json":
        if file.records:
            return sum(1 for _ in parsed(path, lambda raw: ijson.items(raw, file.records)))
        return sum(1 for _ in parsed(path, lambda file: ijson.kvitems(file, "")))
    return sum(1 for _ in lines(path)) - (path.suffix == ".csv")


def array(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Open a NumPy file of text, `[N]`, as a memory map.

    Raises:
        ValueError: The file is not such an array, or it needs pickle.

    """
    try:
        texts = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: no NumPy array of plain text ({error}); pickled arrays are not read"
        ) from error
    if not isinstance(texts, np.ndarray) or texts.ndim != 1 or texts.dtype.kind not in "US":
        raise ValueError(f"{path}: not a one-dimensional array of text; is it the right file?")
    return texts
