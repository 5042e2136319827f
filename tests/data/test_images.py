"""Promises of mla_ray.data.images: strangers' bytes open within limits."""

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from mla_ray.data.images import BadImage, open_image


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_open(format_: str) -> None:
    assert open_image(encoded(Image.new("RGB", (5, 7), "red"), format_)).size == (5, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"GIF89a", "not an image"),
        (b"<svg/>", "not an image"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "not an image"),
        (encoded(Image.effect_noise((64, 64), 50))[:-600], "damaged"),
        (bomb(30_000, 30_000), "more than 40,000,000 pixels"),
        (bomb(8_000, 8_000), "8000 x 8000 pixels"),
        (bomb(100_000, 1), "100000 x 1 pixels"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        open_image(data)


def test_white_is_behind_what_is_transparent() -> None:
    glass = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    glass.putpixel((1, 1), (255, 0, 0, 255))
    opened = open_image(encoded(glass))
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 1)) == (255, 0, 0)
