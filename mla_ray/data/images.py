"""Pictures from anyone: opened within limits, and kept small for a search page to show.

`open_image` is the only door for bytes that a stranger sent, `decode_image` that for images of a
user's own tables.
"""

import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Named, because Pillow would start Ghostscript for a PostScript file.
TABLE_FORMATS = (*FORMATS, "TIFF")
MAX_PIXELS = 40_000_000  # a decoded pixel takes 3 or 4 bytes, a PNG of one colour almost none
MAX_SIDE = 32_000


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
