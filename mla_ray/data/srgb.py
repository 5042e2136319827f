"""Conversion of decoded pixels to the input format of CLIP: 8-bit sRGB on a white background.

The conversion follows the common behavior of image viewers: 16-bit white stays white, color
profiles are applied, and CMYK and Lab are converted. An image is refused if the file does not
define how to display it and viewers therefore differ.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

MAX_PROFILE = 4 << 20
"""Maximum size of a color profile in bytes. The profile of a printing press has two million."""
SAME = 2
"""Maximum color difference, in levels of 0 to 255, at which a profile still counts as sRGB."""
GREY_MODES = ("1", "L", "LA", "La")
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Required color space of a profile, by Pillow's mode."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to mode RGB without metadata.

    Raises:
        ValueError: The file does not define which pixel value is white.

    """
    colours, alpha = _parts(image)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE:
        transform = _transform(profile, colours.mode)
        if transform is not None:
            colours = _applied(transform, colours)
    colours = _in_rgb(colours)
    if alpha is not None:
        # CLIP's preprocessing drops the alpha channel. Transparent pixels would be mostly black.
        colours.putalpha(alpha)
        canvas = Image.new("RGBA", colours.size, "white")
        canvas.alpha_composite(colours)
        colours = canvas.convert("RGB")
    colours.info = {}
    return colours


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the 8-bit colors and the alpha channel, or None if nothing is transparent."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _of_numbers(image)
    if not image.has_transparency_data:
        grey = image.mode in GREY_MODES
        known = image.mode in SPACES or image.mode == "LAB"
        return (image if known else image.convert("L" if grey else "RGB")), None
    # Gray pixels stay gray, because their profile is a gray profile.
    rgba = image.convert("RGBA")
    colours = rgba.getchannel("R") if image.mode in GREY_MODES else rgba.convert("RGB")
    return colours, rgba.getchannel("A")


def _of_numbers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the 8-bit gray values and the alpha channel of gray pixels of more than 8 bits."""
    numbers = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    alpha = None
    if image.mode.startswith("I;16"):
        (depth,) = np.atleast_1d(tags.get(BITSPERSAMPLE, 16))[:1]
        # Keep the upper 8 bits, as Pillow does for 16-bit RGB.
        grey = (numbers.astype(np.uint16) >> (int(depth) - 8)).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            alpha = Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        grey = _of_floats(numbers)
    else:
        raise ValueError(
            f"has whole numbers from {numbers.min()} to {numbers.max()} as pixels (signed or 32 "
            "bits) and does not say which of them is white; save it with 8 or 16 bits"
        )
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0
        grey = 255 - grey
    return Image.fromarray(grey), alpha


def _of_floats(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Convert floating-point gray values to 8 bits.

    White is 1. Whole numbers above 1 come from 8-bit or 16-bit pixels, so white is 255 or 65535.
    """
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
    """Return the transform from a profile's colors to sRGB, or from CIE Lab without a profile.

    The result is None if the profile is sRGB, is broken, or belongs to another kind of pixels.
    Image viewers ignore a broken profile.
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
        raise TypeError("applyTransform returned no image; only an in-place transform does so")
    return applied
