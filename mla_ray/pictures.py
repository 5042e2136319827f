"""Pictures from anyone: opened within limits, and kept small for a search page to show.

`open_image` is the only door for bytes that a stranger sent, `decode_image` that for images of a
user's own tables. May import: Pillow, fsspec.
"""

import hashlib
import uuid
import warnings
from io import BytesIO

import fsspec
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Named, because Pillow would start Ghostscript for a PostScript file.
TABLE_FORMATS = (*FORMATS, "TIFF")
MAX_PIXELS = 40_000_000  # a decoded pixel takes 3 or 4 bytes, a PNG of one colour almost none
MAX_SIDE = 32_000
SIDE = 256  # of a kept picture


class BadImage(ValueError):
    """Bytes that are no image, one of a format not taken, or one too large to decode."""


def open_image(data: bytes) -> Image.Image:
    """The decoded image in `data` on white, of an animation the first frame.

    Size and format are read from the header and judged before anything is decoded.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise BadImage(f"more than {MAX_PIXELS:,} pixels; send it smaller") from error
    except Exception as error:  # Pillow's readers raise what they like on hostile bytes
        raise BadImage(f"not an image that can be read; send {', '.join(FORMATS)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE or min(width, height) < 1:
        raise BadImage(
            f"image of {width} x {height} pixels; at most {MAX_PIXELS:,} pixels and "
            f"{MAX_SIDE:,} a side are decoded: send it smaller"
        )
    try:
        image.load()
    except Exception as error:
        raise BadImage(f"{image.format} image is damaged: {type(error).__name__}") from error
    return on_white(image)


def decode_image(data: bytes) -> Image.Image:
    """The decoded image, of an animation the first frame; a ValueError says why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data), formats=TABLE_FORMATS)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise ValueError(f"is none of {', '.join(TABLE_FORMATS)}") from None
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise ValueError(f"is broken: {error}") from error
    return image


def on_white(image: Image.Image) -> Image.Image:
    """The image with white behind what is transparent; an opaque one as it is.

    Preprocessing for CLIP drops the alpha channel, and what shows then is mostly black.
    """
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


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
