"""Reading of a caption table's images from cells, from files beside the table, or from URLs."""

import hashlib
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from upath import UPath

from mla_ray.data.problems import place_of
from mla_ray.data.video import frames_of
from mla_ray.runtime.storage import as_path, is_file, is_local, read_bytes


def read_image(image: bytes | str, folder: UPath) -> bytes:
    """Return the bytes of an image, given the value of its cell.

    Args:
        image: Bytes, or a path or URL. A relative path starts at `folder`.
        folder: Folder of the table.

    Raises:
        ValueError: There is no such file.

    """
    return image if isinstance(image, bytes) else read_bytes(find_image(image, folder))


def find_image(uri: str, folder: UPath) -> UPath:
    """Return the file that a caption table in `folder` refers to.

    If no file has exactly this name, a file with an equivalent name in Unicode is returned. For
    example, `ä` can be one or two code points, depending on the machine that wrote the name.

    Raises:
        ValueError: There is no such file.

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
    """Return a file whose path is the same in Unicode's normal form NFC, or None.

    At a URL, folders are not listed. Only the NFC and the NFD form of the whole path are tried.
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
    """Return the names in a folder that equal `name` in NFC, with `name` itself first."""
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
    """Return the non-ASCII names in a folder by their NFC form.

    The time of the last change is part of the cache key, so a changed folder is read again.
    """
    by_form: dict[str, list[str]] = {}
    for path in Path(folder).iterdir():
        if not path.name.isascii():
            by_form.setdefault(unicodedata.normalize("NFC", path.name), []).append(path.name)
    return by_form


def _code_points(text: str) -> str:
    """Return the text with each non-ASCII character as a code point, for example `<U+00E4>`."""
    return "".join(char if char.isascii() else f"<U+{ord(char):04X}>" for char in text)


def image_fault(image_id: str, image: bytes | str | None, reason: object) -> str:
    """Return a message that names a bad image, by its path if it has one, and the reason."""
    name = repr(image) if isinstance(image, str) else f"of {image_id!r}"
    return f"image {name} {reason}"


class ImageReader:
    """Reader of the images of a table's rows that decodes each distinct image once as a check.

    Args:
        decode: Whether to check that images can be decoded, or a function of image id and digest
            that says so for each image.
        keep_files: Whether to cache the content of image files, so that a file with several
            captions is read once. Use it for tables that fit in memory.

    """

    def __init__(
        self, *, decode: bool | Callable[[str, bytes], bool] = True, keep_files: bool = False
    ) -> None:
        self.digests: dict[str, bytes] = {}
        """Digest of the image of each image id."""
        self._decode = decode if callable(decode) else lambda image_id, digest: decode
        self._files: dict[tuple[str, str], bytes] | None = {} if keep_files else None
        self._faults: dict[bytes, str | None] = {}
        self._first: dict[str, tuple[UPath, int]] = {}

    def read(self, image_id: str, image: bytes | str, file: UPath, row: int) -> bytes:
        """Return the bytes of a row's image.

        Args:
            image_id: Id of the image.
            image: Bytes, or a path or URL.
            file: File of the table.
            row: Row in this file.

        Raises:
            ValueError: The image cannot be read or decoded, or an earlier row has another image
                with the same id.

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
        is_seen = digest in self._faults or self.digests.get(image_id) == digest
        if not is_seen and self._decode(image_id, digest):
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
    """Return a digest of an image's bytes: 128 bits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _decoding_fault(data: bytes) -> str | None:
    try:
        frames_of(data)
    except ValueError as error:
        return str(error)
    return None
