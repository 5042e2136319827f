"""Decoding of image bytes into upright sRGB pictures on white, within the limits of a policy.

The source of the bytes selects the policy: `STRANGER` for bytes from the network, `OWN_TABLE` for
images of a user's own tables. Both policies produce the same pixels.

**Truncated files.** A picture is decoded if at most 1% of its pixels are missing. Otherwise it is
refused, and the message states the missing share. For PNG, JPEG and BMP files this share is
measured. It cannot be measured for other formats, whose files are decoded only if Pillow's decoder
reports nothing missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from mla_ray.data import jpeg_file, png_file
from mla_ray.data.srgb import to_srgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "HEIC")
"""Accepted formats. The list is explicit because Pillow starts Ghostscript for PostScript files."""
MAX_MISSING = 0.01
"""Maximum share of a picture's pixels that can be missing at its end."""
MAX_RATIO = 200
"""Maximum ratio of the longer side to the shorter side. Preprocessing scales the shorter side to a
fixed size, so the longer side can become very large.
"""
LOOKED_AT = 12
"""Maximum number of frames that are searched for one that is not blank, and of TIFF pages that are
searched for one that is not a reduced copy.
"""
SUBFILE_TYPE = 254
"""TIFF tag with the type of a page. Bit 0 marks a copy of lower resolution."""

SIGNATURES = {
    "PNG": (png_file.SIGNATURE,),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
AVIF_BRANDS = (b"avif", b"avis")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of High Efficiency Image Files. AVIF files also use the last two."""


@dataclass(frozen=True)
class Policy:
    """Limits for images from one kind of source.

    Attributes:
        formats: Names of the accepted formats.
        max_pixels: Maximum number of pixels. A decoded pixel takes 3 or 4 bytes, but a PNG file of
            one color has almost no bytes for each pixel.
        max_side: Maximum length of a side in pixels.

    """

    formats: tuple[str, ...]
    max_pixels: int
    max_side: int


STRANGER = Policy(FORMATS, 40_000_000, 32_000)
OWN_TABLE = Policy((*FORMATS, "TIFF"), 89_478_485, 100_000)


class BadImage(ValueError):
    """Error for bytes that are no image, are damaged or too large, or have a refused format.

    The message continues a sentence that starts with "the image", for example "is broken: …".
    """


class _Format(Protocol):
    """Interface of the modules that handle truncated files (`png_file`, `jpeg_file`)."""

    def is_whole(self, data: bytes) -> bool: ...
    def completed(self, data: bytes, most: float) -> tuple[bytes, float]: ...


def decode_image(data: bytes, policy: Policy) -> Image.Image:
    """Decode `data` to one upright picture in sRGB on white, mode RGB.

    For an animation this is the first frame that has more than one color. For several pages it is
    the first page that is not a reduced copy. If the first `LOOKED_AT` frames or pages have none,
    it is the first one.

    Raises:
        BadImage: The data is no image or `policy` does not accept it. The message states why.

    """
    image = open_image(data, policy)
    first = finished(image)
    if not getattr(image, "is_animated", False) or image.format == "TIFF" or not _blank(first):
        return first
    for number in range(1, LOOKED_AT):
        try:
            image.seek(number)
            frame = finished(image)
        except Exception:  # no further frame can be read
            break
        if not _blank(frame):
            return frame
    return first


def open_image(data: bytes, policy: Policy) -> ImageFile.ImageFile:
    """Open `data` with Pillow and load its first frame, or its first full page if it is a TIFF.

    Format and size are checked in the header before any pixel is decoded. Pixels and orientation
    are those of the file. `finished` converts them.

    Raises:
        BadImage: The data is no image or `policy` does not accept it. The message states why.

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
    except Exception as error:  # decoders raise many types of errors on broken files
        raise BadImage(f"is broken: {error or type(error).__name__}") from error
    if profile:
        image.info["icc_profile"] = profile
    if kind == "PNG":
        png_file.scale_transparency(image, data)
    return image


def finished(image: Image.Image) -> Image.Image:
    """Convert the current frame of an opened image to an upright sRGB picture on white, mode RGB.

    Raises:
        BadImage: The file does not define which pixel value is white.

    """
    orientation = _orientation(image)
    try:
        rgb = to_srgb(image)
    except ValueError as error:
        raise BadImage(str(error)) from error
    # The new image has no EXIF but the orientation. `exif_transpose` writes the EXIF again, which
    # fails on the original EXIF if another part of it is damaged.
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)


def format_of(data: bytes) -> str | None:
    """Detect the format from the first bytes.

    Returns:
        A name as in `Policy.formats`, or None if no known format matches.

    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        kinds = (("AVIF", AVIF_BRANDS), ("HEIC", HEIC_BRANDS))
        return next((kind for kind, of_kind in kinds if brands & set(of_kind)), None)
    return next((kind for kind, first in SIGNATURES.items() if data.startswith(first)), None)


def _brands(data: bytes) -> set[bytes]:
    """Return the brands in a file's first box, `ftyp` (ISO 14496-12, 4.3).

    A specific first brand decides alone. If it is the general `mif1` or `msf1`, all brands count.
    """
    size = int.from_bytes(data[:4])
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, min(size, 128), 4))]
    return {brands[0]} if brands[0] not in (b"mif1", b"msf1") else set(brands)


def _header(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Open a file with Pillow's reader of this format.

    The error of this reader is more precise than the error of `Image.open`.
    """
    try:
        return _reader(kind)(BytesIO(data), "")
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise many types of errors
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
                "is HEIC, which needs pillow-heif: pip install pillow-heif, or convert it to JPEG"
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
        raise BadImage(f"{sides}; one side may be at most {MAX_RATIO} times the other: crop it")


def _not_taken(data: bytes, kind: str | None, policy: Policy) -> str:
    if not data:
        return "is empty"
    which = f"is {kind}, and" if kind else "is"
    return f"{which} none of {', '.join(policy.formats)}"


def _cut(missing: float, of: str) -> str:
    return f"is cut off: {max(missing, 0.001):.1%} of its {of} are missing; fetch it again"


def _lacking(data: bytes, kind: str) -> float:
    """Return the share of a file's declared bytes that are missing, 0 to 1."""
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
    """Append zeros to a truncated BMP.

    A BMP stores its pixels one after another, so missing bytes are missing pixels.
    """
    lacking = _lacking(data, "BMP")
    if lacking > MAX_MISSING:
        raise BadImage(_cut(lacking, "pixels"))
    return data.ljust(int.from_bytes(data[2:6], "little"), b"\0") if lacking else data


def _seek_full_page(image: ImageFile.ImageFile) -> None:
    """Seek the first page of a TIFF that is not a reduced copy. If there is none, seek page 0."""
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
    """Return the EXIF orientation, 1 to 8. It is 1 if missing or unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # many programs write malformed EXIF
        return 1
    return orientation if isinstance(orientation, int) else 1


def _blank(image: Image.Image) -> bool:
    return image.getcolors(1) is not None
