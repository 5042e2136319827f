"""Small copies of images, for a search page to show."""

import hashlib
from io import BytesIO

from PIL import Image
from upath import UPath

from mla_ray.runtime.storage import as_path, is_file, read_bytes, remove, write_bytes

SIDE = 256  # pixels; longer side of a stored picture
EFFORT = 2  # of 6; Pillow's default 4 takes 2.2 times as long for files that are 13 % smaller


class PictureStore:
    """Store of small WebP copies of images, by source and image id, in a folder or at a URL.

    File names are hashes of source and image id, so that no id is used as a file name. Copies are
    encoded again, so that only pixels of a received image are served.

    mla-ray 0.1.0 named a file by the image id only. Such a picture does not tell its source, but
    the index does (`mla_ray.index.ingest.owner`). `get_former` and `remove_former` are for these
    pictures.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = as_path(url)

    def put(self, image_id: str, source: str, image: Image.Image) -> None:
        """Store a copy of at most 256 x 256 pixels; replace that of the same source and id.

        Args:
            image_id: Id of the image.
            source: Source of the image.
            image: The image as decoded by `data.images`: upright, in sRGB.

        """
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=85, method=EFFORT)
        write_bytes(self._path(image_id, source), buffer.getvalue())

    def has(self, image_id: str, source: str) -> bool:
        """Return whether there is a picture of an image."""
        return is_file(self._path(image_id, source))

    def get(self, image_id: str, source: str) -> bytes | None:
        """Return the WebP file of an image, or None if there is none."""
        return self._read(self._path(image_id, source))

    def get_former(self, image_id: str) -> bytes | None:
        """Return the picture that mla-ray 0.1.0 stored for an id, of any source, or None."""
        return self._read(self._path(image_id))

    def remove(self, image_id: str, source: str) -> bool:
        """Remove the picture of an image and return whether it existed."""
        return self._remove(self._path(image_id, source))

    def remove_former(self, image_id: str) -> bool:
        """Remove the picture that mla-ray 0.1.0 stored for an id and return whether it existed."""
        return self._remove(self._path(image_id))

    def _read(self, path: UPath) -> bytes | None:
        try:
            return read_bytes(path, pauses=())  # no retries: a page should not wait for the storage
        except FileNotFoundError:
            return None

    def _remove(self, path: UPath) -> bool:
        existed = is_file(path)
        remove(path)
        return existed

    def _path(self, *identity: str) -> UPath:
        """Return the path for an image id and a source, or for an id only as in 0.1.0."""
        hashes = [hashlib.sha256(part.encode()).hexdigest() for part in identity]
        return self._root / hashes[0][:2] / f"{'-'.join(hashes)}.webp"
