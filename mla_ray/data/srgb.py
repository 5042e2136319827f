"""Pixels of any kind to what a CLIP was trained on: 8 bits a colour in sRGB, on white.

What image viewers agree on is done: white of 16 bits is white, colour profiles count, CMYK and Lab
are converted. What they do not agree on, because nothing in the file says it, is refused.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

MAX_PROFILE = 4 << 20
"""Bytes; that of a printing press has two million."""
SAME = 2
"""Levels by which a profile may move a colour and still be sRGB itself, in other words."""
GREY_MODES = ("1", "L", "LA", "La")
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""What a profile has to be of, by Pillow's mode."""


def to_srgb(image: Image.Image) -> Image.Image:
    """The decoded image in mode RGB, without anything but its pixels.

    Raises:
        ValueError: nothing says what is white in it.

    """
    colours, alpha = _parts(image)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE:
        transform = _transform(profile, colours.mode)
        if transform is not None:
            colours = _applied(transform, colours)
    colours = _in_rgb(colours)
    if alpha is not None:
        # Preprocessing for CLIP drops the alpha channel, and what shows then is mostly black.
        colours.putalpha(alpha)
        canvas = Image.new("RGBA", colours.size, "white")
        canvas.alpha_composite(colours)
        colours = canvas.convert("RGB")
    colours.info = {}
    return colours


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits, and what is transparent of them."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _of_numbers(image)
    if not image.has_transparency_data:
        grey = image.mode in GREY_MODES
        known = image.mode in SPACES or image.mode == "LAB"
        return (image if known else image.convert("L" if grey else "RGB")), None
    # Straight from LA, since a profile of grey pixels is one of grey.
    rgba = image.convert("RGBA")
    colours = rgba.getchannel("R") if image.mode in GREY_MODES else rgba.convert("RGB")
    return colours, rgba.getchannel("A")


def _of_numbers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of more than 8 bits, as whole numbers or with a point."""
    numbers = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    alpha = None
    if image.mode.startswith("I;16"):
        (depth,) = np.atleast_1d(tags.get(BITSPERSAMPLE, 16))[:1]
        # The upper 8 bits, as Pillow has it for 16 bits of red, green and blue.
        grey = (numbers.astype(np.uint16) >> (int(depth) - 8)).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            alpha = Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        grey = _of_floats(numbers)
    else:
        raise ValueError(
            f"has whole numbers from {numbers.min()} to {numbers.max()} as pixels, signed or of 32 "
            "bits, and does not say which is white; save it with 8 or 16 bits"
        )
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0
        grey = 255 - grey
    return Image.fromarray(grey), alpha


def _of_floats(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """White is 1; of whole numbers above, which were pixels of 8 or 16 bits before, their white."""
    low, high = float(numbers.min()), float(numbers.max())
    white = 1
    if high > 1 and (numbers == np.floor(numbers)).all():
        white = 255 if high <= 255 else 65535
    if not 0 <= low <= high <= white:
        raise ValueError(
            f"has numbers from {low:g} to {high:g} as pixels, where 0 is black and 1 is white; "
            "scale them, or save it with 8 or 16 bits"
        )
    return np.round(numbers * (255 / white)).astype(np.uint8)


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        transform = _transform(None, "LAB")
        return _applied(transform, image) if transform else image.convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


@lru_cache(16)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None if it is sRGB, of another kind of pixels, or broken.

    Viewers show a picture whose profile is broken without it. Without a profile: from CIE Lab.
    """
    srgb = ImageCms.createProfile("sRGB")
    try:
        if profile is None:
            return ImageCms.buildTransform(ImageCms.createProfile("LAB"), srgb, "LAB", "RGB")
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if own.profile.xcolor_space.strip() != SPACES.get(mode):
            return None
        transform = ImageCms.buildTransform(own, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    sample = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(sample if mode == "RGB" else sample[:, :, 0])
    after = np.asarray(_applied(transform, before), dtype=np.int16)
    moved = np.abs(after - np.asarray(before.convert("RGB"), dtype=np.int16)).max()
    return transform if moved > SAME else None


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    applied = ImageCms.applyTransform(image, transform)
    if applied is None:
        raise TypeError("only a transform in place gives no image")
    return applied
