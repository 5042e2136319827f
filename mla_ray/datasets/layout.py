"""How a public data set lies on disk, and readers of the formats that such sets come in.

Nobody may pass these sets on, so each is fetched by hand from where it is published and unpacked
below one folder, its root, with the names it comes with. Every reader is a stream, and a fault
names the file, the place in it and the remedy.
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
"""Bytes: the longest line of these sets, one image of Crossmodal-3600, has some 30,000."""

T = TypeVar("T")


@dataclass(frozen=True)
class SourceFile:
    """A file or folder of a data set.

    Args:
        path: below the root; a `.gz` may also lie there unpacked, without that ending.
        home: where it is to be had.
        count: how many lines (of a CSV without its header), records or files it has as published;
            None if nobody says.
        records: what is counted in a JSON file: an ijson prefix, or "" for the members of its one
            object.
        languages: that need it; None: all do.
        optional: the set can be made without it.

    """

    path: str
    home: str
    count: int | None = None
    records: str = ""
    languages: tuple[str, ...] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Size:
    """What is published of a language's captions in a split; None: not published."""

    images: int | None
    captions: int | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set and its readers.

    Args:
        name: in the catalog and on the command line.
        title: what it is, in a few words.
        licence: of captions and images.
        languages: BCP-47, those that captions are in.
        files: and folders that it is made of.
        captions: rows of the caption table in these languages, from this root. Captions of an image
            in a language come together, and no image twice.
        pairs: rows of the translation table into one language; training data alone.
        pair_languages: that `pairs` knows.
        sizes: as published, by language and split.
        items: what `image` is: images or videos.

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
    """The file or folder of a data set that lies at `path` below its root."""
    for place in (root / path, root / path.removesuffix(".gz")):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{root / path}: missing; `mla data check NAME --root {root}` says where it is to be had"
    )


def inside(folder: Path, name: str, place: str) -> Path:
    """The file `name` of a list, in `folder`; a name that leads out of it is refused."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or not _plain(name):
        raise ValueError(f"{place}: {name!r} names no file in {folder}; fetch the list anew")
    return folder / path


def _plain(name: str) -> bool:
    return name.isprintable() and "\\" not in name


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file and their numbers from 1, as UTF-8; gzip is told by the ending."""
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
            # Only these end a line: captions hold other characters that str.splitlines cuts at.
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
    """The names in a list, one a line; none may be empty or there twice."""
    first: dict[str, int] = {}
    for number, line in lines(path):
        name = line.strip()
        if not name:
            raise ValueError(f"{path} line {number}: no name; take the line out")
        if (earlier := first.setdefault(name, number)) != number:
            raise ValueError(f"{path} line {number}: repeats line {earlier}; take it out")
    return list(first)


def aligned(path: Path, listed: Sequence[str], of: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that says line by line what belongs to the names in list `of`."""
    number = 0
    for number, text in lines(path):
        if number <= len(listed):
            yield number, text
    if number != len(listed):
        raise ValueError(
            f"{path}: {number:,} lines, but {of} has {len(listed):,}, and they belong together "
            "line by line; fetch both anew"
        )


def records(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """The objects of a list in a JSON file, one at a time.

    Args:
        path: may be longer than memory.
        prefix: of the objects, as ijson writes it: `annotations.item`.

    """
    number = 0
    for record in parsed(path, lambda file: ijson.items(file, prefix, use_float=True)):
        number += 1
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} {prefix.removesuffix('.item')} {number}: {type(record).__name__} where an "
                "object is needed; is it the right file?"
            )
        yield record
    if not number:
        raise ValueError(
            f"{path}: nothing in {prefix.removesuffix('.item')!r}; is it the right file?"
        )


def members(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Names and their captions, of a JSON file that is one object of lists."""
    number = 0
    for name, value in parsed(path, lambda file: ijson.kvitems(file, "", use_float=True)):
        number += 1
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(
                f"{path} {name!r}: a list of captions is needed; is it the right file?"
            )
        yield name, value
    if not number:
        raise ValueError(f"{path}: an object with nothing in it; is it the right file?")


def parsed(path: Path, values: Callable[[IO[bytes]], Iterator[T]]) -> Iterator[T]:
    """What ijson finds in a file; a ValueError says that it is not JSON."""
    with path.open("rb") as file:
        try:
            yield from values(file)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not JSON, or broken off ({error}); fetch it anew") from error


def member(record: Mapping[str, Any], name: str, kind: type[T], place: str) -> T:
    """A member of an object, which must be of this kind."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise ValueError(
            f"{place}: {name!r} is {value!r:.60}, and {kind.__name__} is needed; is it the right "
            "file?"
        )
    return value


def count(path: Path, file: SourceFile) -> int:
    """How many lines, records or files there are; nothing is kept in memory."""
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
    """A NumPy file of text [N], on disk; pickled ones are refused."""
    try:
        texts = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: no NumPy array of plain text ({error}); pickled arrays are not read"
        ) from error
    if not isinstance(texts, np.ndarray) or texts.ndim != 1 or texts.dtype.kind not in "US":
        raise ValueError(f"{path}: no array of text in one dimension; is it the right file?")
    return texts
