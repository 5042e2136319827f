"""Small copies of images, for a search page to show."""

import hashlib
import uuid
from io import BytesIO

import fsspec
from PIL import Image, ImageOps

SIDE = 256  # of a kept picture


class PictureStore:
    """Small WebP copies of images, by image id, in a folder or at an fsspec URL.

    The name of a file is a hash of the id, so that no id reaches the file system; the copy is drawn
    anew, so that nothing of what was sent is served but its pixels.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def put(self, image_id: str, image: Image.Image) -> None:
        """Keep a copy of at most 256 x 256 pixels; one of the same id is replaced."""
        small = ImageOps.exif_transpose(image).convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=85)
        path = self._path(image_id)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        draft = f"{path}.{uuid.uuid4().hex}"  # there as a whole or not at all
        self._fs.pipe_file(draft, buffer.getvalue())
        self._fs.mv(draft, path)

    def get(self, image_id: str) -> bytes | None:
        """A WebP file, or None if there is no picture of that id."""
        try:
            return self._fs.cat_file(self._path(image_id))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def _path(self, image_id: str) -> str:
        name = hashlib.sha256(image_id.encode()).hexdigest()
        return f"{self._root}/{name[:2]}/{name}.webp"
