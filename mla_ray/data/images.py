"""The one door for the bytes of pictures: judged, decoded, upright, in sRGB and on white.

Who sent them says which policy is theirs: `STRANGER` for what comes over the network, `OWN_TABLE`
for images of a user's own tables. The pixels are the same by both.

**What ends early.** A picture is read if at most one pixel in a hundred is missing, and refused
with how much is missing if there are more. In PNG, JPEG and BMP that is measured. Of other formats
it cannot be: these are read if their decoder misses nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from mla_ray.data import jpeg_file, png_file
from mla_ray.data.srgb import to_srgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "HEIC")
"""Named, because Pillow would start Ghostscript for a PostScript file."""
MAX_MISSING = 0.01
"""The part of a picture's pixels that may be missing at its end."""
MAX_RATIO = 200
"""Of a picture's sides; it is scaled by its shorter one, and the longer one follows."""
LOOKED_AT = 12
"""Frames of an animation for one that is not blank, pages for one that is no small copy."""
SUBFILE_TYPE = 254
"""Tag of a page of a TIFF; 1: of a lower resolution."""

SIGNATURES = {
    "PNG": (png_file.SIGNATURE,),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Of High Efficiency Image Files; the last two are of AVIF too."""


@dataclass(frozen=True)
class Policy:
    """What is taken from somebody.

    Attributes:
        formats: by name.
        max_pixels: of a picture; a decoded one takes 3 or 4 bytes each, a PNG of one colour
            almost none.
        max_side: in pixels.

    """

    formats: tuple[str, ...]
    max_pixels: int
    max_side: int


STRANGER = Policy(FORMATS, 40_000_000, 32_000)
OWN_TABLE = Policy((*FORMATS, "TIFF"), 89_478_485, 100_000)


class BadImage(ValueError):
    """Bytes that are no picture, one of a format not taken, damaged, or too large to decode.

    Its text goes on from "the image": "is broken: …".
    """


class _Format(Protocol):
    """A module that knows the files of a format (`png_file`, `jpeg_file`)."""

    def is_whole(self, data: bytes) -> bool: ...
    def completed(self, data: bytes, most: float) -> tuple[bytes, float]: ...


def decode_image(data: bytes, policy: Policy) -> Image.Image:
    """The picture in `data`, mode RGB, upright, in sRGB and on white.

    Of an animation it is the first frame that is more than one colour, of several pages the first.

    Raises:
        BadImage: there is none, or none that `policy` takes; says why.

    """
    image = open_image(data, policy)
    first = finished(image)
    if not getattr(image, "is_animated", False) or image.format == "TIFF" or not _blank(first):
        return first
    for number in range(1, LOOKED_AT):
        try:
            image.seek(number)
            frame = finished(image)
        except Exception:  # there are no more that can be read
            break
        if not _blank(frame):
            return frame
    return first


def open_image(data: bytes, policy: Policy) -> ImageFile.ImageFile:
    """Pillow's image with its first frame loaded, as the file has it; see `finished`.

    Format and size are read from the header and judged before anything is decoded.

    Raises:
        BadImage: as `decode_image`.

    """
    kind = format_of(data)
    if kind not in policy.formats:
        raise BadImage(_not_taken(data, kind, policy))
    profile = None
    if kind == "PNG":
        data, profile = png_file.lightened(data)
    elif kind == "BMP":
        data = _filled_up(data)
    image = _header(data, kind)
    _check_size(image.width, image.height, policy)
    file: _Format | None = {"PNG": png_file, "JPEG": jpeg_file}.get(kind)
    try:
        if file and not file.is_whole(data):
            data, missing = file.completed(data, MAX_MISSING)
            if missing > MAX_MISSING:
                raise BadImage(_cut(missing, "pixels"))
            image = _header(data, kind)
        if kind == "TIFF":
            _seek_full_page(image)
            _check_size(image.width, image.height, policy)
        image.load()
    except BadImage:
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise BadImage(f"is broken: {error or type(error).__name__}") from error
    if profile:
        image.info["icc_profile"] = profile
    if kind == "PNG":
        png_file.scale_transparency(image, data)
    return image


def finished(image: Image.Image) -> Image.Image:
    """The frame that an opened image is at, mode RGB: in sRGB, on white, upright.

    Raises:
        BadImage: nothing says what is white in it.

    """
    orientation = _orientation(image)
    try:
        rgb = to_srgb(image)
    except ValueError as error:
        raise BadImage(str(error)) from error
    # Of the new image, which has no EXIF: Pillow would write the old one anew, and cannot if it is
    # damaged elsewhere.
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)


def format_of(data: bytes) -> str | None:
    """The format that the first bytes say, by its name in `Policy.formats`; None if none does."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        kinds = (("AVIF", AVIF_BRANDS), ("HEIC", HEIC_BRANDS))
        return next((kind for kind, of_kind in kinds if brands & set(of_kind)), None)
    return next((kind for kind, first in SIGNATURES.items() if data.startswith(first)), None)


def _brands(data: bytes) -> set[bytes]:
    """Of a file in boxes as MP4 has them, whose first names what can read it (ISO 14496-12, 4.3).

    The first brand decides if it is a format's own; the others speak for the general `mif1`.
    """
    size = int.from_bytes(data[:4])
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, min(size, 128), 4))]
    return {brands[0]} if brands[0] not in (b"mif1", b"msf1") else set(brands)


def _header(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Opened by Pillow's reader of this format alone, whose error says more than `Image.open`'s."""
    try:
        return _reader(kind)(BytesIO(data), "")
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise what they like on hostile bytes
        if lacking := _lacking(data, kind):
            raise BadImage(_cut(lacking, "bytes")) from error
        reason = str(error).strip() or type(error).__name__
        raise BadImage(f"is broken: not a {kind} that can be read ({reason})") from error


def _reader(kind: str) -> Callable[[BytesIO, str], ImageFile.ImageFile]:
    if kind == "HEIC":
        try:
            import pillow_heif
        except ImportError:
            raise BadImage(
                "is HEIC, which needs pillow-heif: pip install 'mla-ray[heic]', or convert it to "
                "JPEG"
            ) from None
        pillow_heif.register_heif_opener()
        return Image.OPEN["HEIF"][0]
    Image.init()
    return Image.OPEN[kind][0]


def _check_size(width: int, height: int, policy: Policy) -> None:
    sides = f"is of {width} x {height} pixels"
    if width * height > policy.max_pixels or max(width, height) > policy.max_side:
        raise BadImage(
            f"{sides}; at most {policy.max_pixels:,} pixels and {policy.max_side:,} a side are "
            "decoded: scale it down"
        )
    if min(width, height) < 1 or max(width, height) > MAX_RATIO * min(width, height):
        raise BadImage(f"{sides}; one side may be at most {MAX_RATIO} times the other: cut it")


def _not_taken(data: bytes, kind: str | None, policy: Policy) -> str:
    if not data:
        return "is empty"
    which = f"is {kind}, and" if kind else "is"
    return f"{which} none of {', '.join(policy.formats)}"


def _cut(missing: float, of: str) -> str:
    return f"is cut off: {max(missing, 0.001):.1%} of its {of} are missing; fetch it again"


def _lacking(data: bytes, kind: str) -> float:
    """The part of its bytes that a file says it has and has not: 0 to 1."""
    declared = 0
    if kind == "WEBP":
        declared = 8 + int.from_bytes(data[4:8], "little")
    elif kind == "BMP":
        declared = int.from_bytes(data[2:6], "little")
    elif kind in ("AVIF", "HEIC"):
        while declared + 8 <= len(data) and (size := int.from_bytes(data[declared:][:4])) >= 8:
            declared += size
    return max(0.0, 1 - len(data) / declared) if declared else 0.0


def _filled_up(data: bytes) -> bytes:
    """A BMP with zeros for the bytes that it lacks: its pixels are its bytes, one after another."""
    lacking = _lacking(data, "BMP")
    if lacking > MAX_MISSING:
        raise BadImage(_cut(lacking, "pixels"))
    return data.ljust(int.from_bytes(data[2:6], "little"), b"\0") if lacking else data


def _seek_full_page(image: ImageFile.ImageFile) -> None:
    """To the first page of a TIFF that is not a small copy of another, or to the first."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    for number in range(LOOKED_AT):
        try:
            image.seek(number)
        except EOFError:
            break
        if not int(image.tag_v2.get(SUBFILE_TYPE, 0)) & 1:
            return
    image.seek(0)


def _orientation(image: Image.Image) -> int:
    """As EXIF has it, 1 to 8; 1 if there is none, or none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF is written by everything
        return 1
    return orientation if isinstance(orientation, int) else 1


def _blank(image: Image.Image) -> bool:
    return image.getcolors(1) is not None
