"""The images of a caption table, wherever they are: in a cell, beside the table, at a URL."""

import hashlib
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from upath import UPath

from mla_ray.data.problems import place_of
from mla_ray.data.video import frames_of
from mla_ray.runtime.storage import as_path, is_file, is_local, read_bytes


def read_image(image: bytes | str, folder: UPath) -> bytes:
    """The bytes of an image, from a cell that holds them or says where they are.

    Args:
        image: bytes, or a path or URL; a path is from `folder` if it is not absolute.
        folder: of the table.

    Raises:
        ValueError: there is no such file.

    """
    return image if isinstance(image, bytes) else read_bytes(find_image(image, folder))


def find_image(uri: str, folder: UPath) -> UPath:
    """The file that a caption table in `folder` means; a ValueError says why there is none.

    Where there is none of just that name, one that Unicode takes for the same is it: `ä` is one
    character or two, and which, depends on the machine that wrote the table or the file.
    """
    if uri.startswith("file://"):
        path = as_path(url2pathname(urlsplit(uri).path))
    elif "://" in uri:
        path = as_path(uri)
    else:
        path = folder / uri
    if is_file(path):
        return path
    name = str(path)
    if name.isascii():
        raise ValueError(f"is missing: there is no {path}")
    if other := _of_equal_name(path):
        return other
    raise ValueError(f"is missing: there is no {path}; in code points: {_code_points(name)}")


def _of_equal_name(path: UPath) -> UPath | None:
    """A file whose path is the same in Unicode's normal form NFC.

    At a URL folders are not listed: there, wholly composed and wholly decomposed names are tried.
    """
    if is_local(path):
        absolute = Path(path.path).absolute()
        paths = [Path(absolute.anchor)]
        for part in absolute.parts[1:]:
            paths = [folder / name for folder in paths for name in _equal_names(folder, part)]
        candidates = [as_path(equal) for equal in paths]
    else:
        forms = [unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD")]
        candidates = [as_path(form) for form in forms]
    return next((candidate for candidate in candidates if is_file(candidate)), None)


def _equal_names(folder: Path, name: str) -> list[str]:
    """Names in a folder that equal `name` in NFC, `name` itself first."""
    if name.isascii():
        return [name]
    try:
        by_form = _names_by_form(str(folder), folder.stat().st_mtime_ns)
    except OSError:
        return []
    equal = by_form.get(unicodedata.normalize("NFC", name), [])
    return sorted(equal, key=lambda other: other != name)


@lru_cache(8)
def _names_by_form(folder: str, changed: int) -> dict[str, list[str]]:
    """Names that are not ASCII by their NFC; read again when the folder was changed since."""
    by_form: dict[str, list[str]] = {}
    for path in Path(folder).iterdir():
        if not path.name.isascii():
            by_form.setdefault(unicodedata.normalize("NFC", path.name), []).append(path.name)
    return by_form


def _code_points(text: str) -> str:
    """The text with what is not ASCII as U+00E4, so that what looks the same does not."""
    return "".join(char if char.isascii() else f"<U+{ord(char):04X}>" for char in text)


def image_fault(image_id: str, image: bytes | str | None, reason: object) -> str:
    """For messages: which image is of no use, by its path if it has one, and why."""
    name = repr(image) if isinstance(image, str) else f"of {image_id!r}"
    return f"image {name} {reason}"


class ImageReader:
    """Reads the images of a table's rows; each distinct one is decoded once, to see if it can be.

    Args:
        decode: whether to see that.
        keep_files: hold what was read of files, to read each once though several captions are of
            it; for a table that fits in memory.

    """

    def __init__(self, *, decode: bool = True, keep_files: bool = False) -> None:
        self.digests: dict[str, bytes] = {}
        """Of the image of each id."""
        self._decode = decode
        self._files: dict[tuple[str, str], bytes] | None = {} if keep_files else None
        self._faults: dict[bytes, str | None] = {}
        self._first: dict[str, tuple[UPath, int]] = {}

    def read(self, image_id: str, image: bytes | str, file: UPath, row: int) -> bytes:
        """The bytes of the image of a row of `file`.

        Raises:
            ValueError: it cannot be had or decoded, or another image had its id before.

        """
        if self._files is None or isinstance(image, bytes):
            return self._read(image_id, image, file, row)
        if (image_id, image) not in self._files:
            self._files[image_id, image] = self._read(image_id, image, file, row)
        return self._files[image_id, image]

    def _read(self, image_id: str, image: bytes | str, file: UPath, row: int) -> bytes:
        try:
            data = read_image(image, file.parent)
        except (ValueError, OSError) as error:
            raise ValueError(image_fault(image_id, image, error)) from error
        digest = digest_of(data)
        if self._decode and digest not in self._faults:
            self._faults[digest] = _decoding_fault(data)
        if fault := self._faults.get(digest):
            raise ValueError(image_fault(image_id, image, fault))
        if self.digests.setdefault(image_id, digest) != digest:
            earlier = place_of(*self._first[image_id], seen_from=file)
            raise ValueError(
                f"image_id {image_id!r} has another image in {earlier}; give each image an id of "
                "its own"
            )
        self._first.setdefault(image_id, (file, row))
        return data


def digest_of(data: bytes) -> bytes:
    """16 bytes that tell an image from others."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _decoding_fault(data: bytes) -> str | None:
    try:
        frames_of(data)
    except ValueError as error:
        return str(error)
    return None
