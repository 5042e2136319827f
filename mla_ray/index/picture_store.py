"""Small copies of images, for a search page to show."""

import hashlib
from io import BytesIO

from PIL import Image
from upath import UPath

from mla_ray.runtime.storage import as_path, is_file, read_bytes, remove, write_bytes

SIDE = 256  # of a kept picture


class PictureStore:
    """Small WebP copies of images, by source and image id, in a folder or at an fsspec URL.

    The name of a file is a hash of each, so that no id reaches the file system; the copy is drawn
    anew, so that nothing of what was sent is served but its pixels.

    Versions up to 0.1.0 named a file by the id alone. Such a picture does not say whose it is; an
    index does (`mla_ray.index.ingest.owner`), so it has methods of its own.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = as_path(url)

    def put(self, image_id: str, source: str, image: Image.Image) -> None:
        """Keep a copy of at most 256 x 256 pixels; that of the same source and id is replaced.

        The image is as `data.images` gives it: upright, in sRGB.
        """
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=85)
        write_bytes(self._path(image_id, source), buffer.getvalue())

    def get(self, image_id: str, source: str) -> bytes | None:
        """A WebP file, or None if there is no picture of that image."""
        return self._read(self._path(image_id, source))

    def get_former(self, image_id: str) -> bytes | None:
        """The picture that 0.1.0 kept of that id, whatever its source."""
        return self._read(self._path(image_id))

    def remove(self, image_id: str, source: str) -> bool:
        """Whether there was one."""
        return self._remove(self._path(image_id, source))

    def remove_former(self, image_id: str) -> bool:
        return self._remove(self._path(image_id))

    def _read(self, path: UPath) -> bytes | None:
        try:
            return read_bytes(path, pauses=())  # whoever looks at a page does not wait for storage
        except FileNotFoundError:
            return None

    def _remove(self, path: UPath) -> bool:
        existed = is_file(path)
        remove(path)
        return existed

    def _path(self, *identity: str) -> UPath:
        """Of an image id and a source; of an id alone as 0.1.0 named it."""
        hashes = [hashlib.sha256(part.encode()).hexdigest() for part in identity]
        return self._root / hashes[0][:2] / f"{'-'.join(hashes)}.webp"
