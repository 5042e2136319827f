"""Promises of mla_ray.data.images: whatever people send comes out as it was drawn, or not at all.

One table of pictures. What each has to be is the array that was drawn, or follows from it by the
formula of a standard, never from what decodes it.
"""

import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageCms

from mla_ray.data.images import OWN_TABLE, STRANGER, BadImage, Policy, decode_image
from mla_ray.data.video import frames_of
from tests.support.pictures import (
    P3_TO_XYZ,
    SRGB_TO_XYZ,
    Pixels,
    chunk,
    drawn,
    from_lab,
    from_profile,
    grey_of,
    in_rgb,
    png,
    profile,
    saved,
    tiff,
)

DRAWN = drawn()
GREY = grey_of(DRAWN)
PICTURE = Image.fromarray(DRAWN)
HEIGHT, WIDTH = GREY.shape
WHITE = (255, 255, 255)

# What is stored for a picture that is shown upright, by EXIF's orientation (CIPA DC-008, 4.6.5).
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
LOSSLESS = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}


class Sent(NamedTuple):
    """A picture's bytes, and what they have to be: pixels, or the reason why there are none."""

    data: bytes
    expected: npt.NDArray[np.generic] | str
    off: float = 0
    """Levels by which pixels may differ in the mean."""
    policies: tuple[Policy, ...] = (STRANGER, OWN_TABLE)


def turned(orientation: int, format_: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](DRAWN)))
    return saved(stored, format_, exif=exif.tobytes(), **LOSSLESS.get(format_, {}), **options)


def upright() -> dict[str, Sent]:
    sideways = np.ascontiguousarray(STORED[6](DRAWN))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profiled = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n".encode()
    of_magick = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profiled))
    table = {f"JPEG, {turn}": Sent(turned(turn, "JPEG"), DRAWN, 1) for turn in STORED}
    table |= {f"{kind}, 6": Sent(turned(6, kind), DRAWN) for kind in ("PNG", "WEBP")}
    table |= {
        "AVIF, 8": Sent(turned(8, "AVIF", quality=100, subsampling="4:4:4"), DRAWN, 2),
        "TIFF, 3": Sent(turned(3, "TIFF"), DRAWN, 0, (OWN_TABLE,)),
        "TIFF by LZW, 6": Sent(turned(6, "TIFF", compression="tiff_lzw"), DRAWN, 0, (OWN_TABLE,)),
        "PNG, by XMP": Sent(png(sideways, extras=text), DRAWN),
        "PNG, by ImageMagick": Sent(png(sideways, extras=of_magick), DRAWN),
        "an orientation of 9": Sent(saved(PICTURE, "PNG", exif=exif_of(9)), DRAWN),
        "EXIF that is noise": Sent(saved(PICTURE, "PNG", exif=b"Exif\0\0" + bytes(99)), DRAWN),
    }
    return table


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def deep() -> dict[str, Sent]:
    wide = GREY.astype(np.uint16) * 257
    grey = in_rgb(GREY)
    floats = GREY.astype(np.float32)
    own = (OWN_TABLE,)
    packed = np.zeros((HEIGHT, WIDTH // 2, 3), np.uint8)  # two samples of 12 bits in three bytes
    first, second = (GREY[:, start::2].astype(np.uint16) << 4 for start in (0, 1))
    packed[:, :, 0] = first >> 4
    packed[:, :, 1] = (first & 15) << 4 | second >> 8
    packed[:, :, 2] = second & 255
    strip = packed.tobytes()
    size = (WIDTH, HEIGHT)

    def of_floats(values: npt.NDArray[np.float32]) -> bytes:
        return saved(Image.fromarray(values.astype(np.float32)), "TIFF")

    tail = {"t258": 16, "t262": 0}
    big_endian = Image.frombytes("I;16B", size, wide.astype(">u2").tobytes())
    return {
        "16-bit grey PNG": Sent(png(wide, 16), grey),
        "16-bit grey PNG of 8-bit steps": Sent(png(wide & 0xFF00, 16), grey),
        "16-bit RGB PNG": Sent(png(DRAWN.astype(np.uint16) * 257, 16), DRAWN),
        "16-bit grey TIFF": Sent(saved(Image.fromarray(wide), "TIFF"), grey, 0, own),
        "16-bit TIFF, big-endian": Sent(saved(big_endian, "TIFF"), grey, 0, own),
        "16-bit TIFF, white is 0": Sent(
            tiff((65535 - wide).tobytes(), *size, **tail), grey, 0, own
        ),
        "12-bit TIFF": Sent(tiff(strip, *size, t258=12), grey, 0, own),
        "float TIFF to 1": Sent(of_floats(floats / 255), grey, 0, own),
        "float TIFF of 8-bit numbers": Sent(of_floats(floats), grey, 0, own),
        "float TIFF of 16-bit numbers": Sent(of_floats(floats * 257), grey, 0, own),
        "float TIFF beyond 1": Sent(of_floats(floats / 100), "numbers from .* to 2.5", 0, own),
        "float TIFF with NaN": Sent(of_floats(floats * np.nan), "numbers from nan to nan", 0, own),
        "float TIFF below 0": Sent(of_floats(floats / 255 - 0.5), "from -0.38", 0, own),
        "32-bit TIFF": Sent(
            saved(Image.fromarray(GREY.astype(np.int32) * 1000), "TIFF"),
            "whole numbers from 30000 to 250000",
            0,
            own,
        ),
    }


def transparent() -> dict[str, Sent]:
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[: HEIGHT // 4, : WIDTH // 4] = True
    on_white = np.where(corner[:, :, None], 255, DRAWN).astype(np.uint8)
    grey_on_white = in_rgb(np.where(corner, 255, GREY))
    alpha = np.where(corner, 0, 255).astype(np.uint8)
    rgba = np.dstack([DRAWN, alpha])
    half = np.full((HEIGHT, WIDTH, 4), (200, 100, 0, 128), np.uint8)
    indexed = np.where(corner, 0, 1).astype(np.uint8)
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    of_palette = np.where(corner[:, :, None], 255, (40, 50, 60)).astype(np.uint8)
    two_bits = np.where(corner, 1, GREY.astype(int) // 86).astype(np.uint8)
    two_bits[~corner & (two_bits == 1)] = 2
    of_two = in_rgb(np.where(corner, 255, two_bits * 85))
    one_bit = np.where(corner, 0, 1).astype(np.uint8)
    key = np.array([250, 10, 10])
    gif = Image.fromarray(indexed)
    gif.putpalette([10, 20, 30, 40, 50, 60])
    return {
        "RGBA PNG": Sent(png(rgba), on_white),
        "RGBA PNG of 16 bits": Sent(png(rgba.astype(np.uint16) * 257, 16), on_white),
        "RGBA WebP": Sent(saved(Image.fromarray(rgba), "WEBP", lossless=True), on_white),
        "half transparent": Sent(png(half), np.full((HEIGHT, WIDTH, 3), (227, 177, 127)), 1),
        "grey PNG with alpha": Sent(png(np.dstack([GREY, alpha])), grey_on_white),
        "RGB PNG, a colour transparent": Sent(
            png(DRAWN, extras=chunk(b"tRNS", key.astype(">u2").tobytes())), on_white
        ),
        "16-bit RGB PNG, a colour transparent": Sent(
            png(
                DRAWN.astype(np.uint16) * 257,
                16,
                chunk(b"tRNS", (key * 257).astype(">u2").tobytes()),
            ),
            on_white,
        ),
        "16-bit grey PNG, a grey transparent": Sent(
            png(GREY.astype(np.uint16) * 257, 16, chunk(b"tRNS", (250 * 257).to_bytes(2))),
            grey_on_white,
        ),
        "2-bit grey PNG, a grey transparent": Sent(
            png(two_bits, 2, chunk(b"tRNS", (1).to_bytes(2))), of_two
        ),
        "1-bit PNG": Sent(png(one_bit, 1), in_rgb(one_bit * 255)),
        "1-bit PNG, black transparent": Sent(
            png(one_bit, 1, chunk(b"tRNS", (0).to_bytes(2))), in_rgb(one_bit * 0 + 255)
        ),
        "1-bit TIFF": Sent(
            saved(Image.fromarray(one_bit * 255).convert("1"), "TIFF"),
            in_rgb(one_bit * 255),
            0,
            (OWN_TABLE,),
        ),
        "palette PNG": Sent(
            png(indexed, 8, palette, 3), np.where(corner[:, :, None], (10, 20, 30), (40, 50, 60))
        ),
        "palette PNG, a colour transparent": Sent(
            png(indexed, 8, palette + chunk(b"tRNS", b"\0"), 3), of_palette
        ),
        "palette PNG, half transparent": Sent(
            png(indexed, 1, palette + chunk(b"tRNS", bytes([0, 128])), 3),
            np.where(corner[:, :, None], 255, (147, 152, 157)),
            1,
        ),
        "GIF, a colour transparent": Sent(saved(gif, "GIF", transparency=0), of_palette),
    }


def coloured() -> dict[str, Sent]:
    p3 = profile(P3_TO_XYZ, 2.2)
    in_p3 = from_profile(DRAWN, P3_TO_XYZ, 2.2)
    linear_grey = from_profile(in_rgb(GREY), SRGB_TO_XYZ, 1.0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    own = (OWN_TABLE,)
    inks = 255 - DRAWN  # no black: red light is what cyan ink leaves
    cmyk = Image.fromarray(np.dstack([inks, np.zeros_like(GREY)]), "CMYK")
    lab = np.dstack([GREY, np.full_like(GREY, 20), (GREY // 4).astype(np.uint8)])  # as signed bytes
    as_numbers = np.dstack([GREY * (100 / 255), np.full(GREY.shape, 20.0), GREY // 4])
    of_lab = tiff(lab.tobytes(), WIDTH, HEIGHT, t258=(8, 8, 8), t262=8, t277=3)
    half = np.dstack([DRAWN, np.full_like(GREY, 128)])
    mixed = (in_p3.astype(int) * 128 + 255 * 127) // 255
    return {
        "RGB JPEG": Sent(saved(PICTURE, "JPEG", **LOSSLESS["JPEG"]), DRAWN, 1),
        "grey JPEG": Sent(saved(Image.fromarray(GREY), "JPEG", quality=98), in_rgb(GREY), 1),
        "CMYK JPEG of Adobe": Sent(saved(cmyk, "JPEG", quality=98, subsampling=0), DRAWN, 1),
        "CMYK TIFF": Sent(saved(cmyk, "TIFF"), DRAWN, 1, own),
        "YCbCr TIFF": Sent(saved(PICTURE.convert("YCbCr"), "TIFF"), DRAWN, 1.5, own),
        "Lab TIFF": Sent(of_lab, from_lab(as_numbers), 1.5, own),
        "Display P3 PNG": Sent(saved(PICTURE, "PNG", icc_profile=p3), in_p3, 1),
        "Display P3 JPEG": Sent(
            saved(PICTURE, "JPEG", icc_profile=p3, **LOSSLESS["JPEG"]), in_p3, 1.5
        ),
        "Display P3 WebP": Sent(saved(PICTURE, "WEBP", icc_profile=p3, lossless=True), in_p3, 1),
        "Display P3 TIFF": Sent(saved(PICTURE, "TIFF", icc_profile=p3), in_p3, 1, own),
        "Display P3 PNG with alpha": Sent(
            saved(Image.fromarray(half), "PNG", icc_profile=p3), mixed, 1.5
        ),
        "grey PNG, linear": Sent(
            saved(Image.fromarray(GREY), "PNG", icc_profile=profile(None, 1.0)), linear_grey, 1
        ),
        "PNG with sRGB's profile": Sent(saved(PICTURE, "PNG", icc_profile=srgb), DRAWN),
        "PNG with a broken profile": Sent(saved(PICTURE, "PNG", icc_profile=b"no profile"), DRAWN),
        "RGB with a profile of grey": Sent(
            saved(PICTURE, "PNG", icc_profile=profile(None, 1.0)), DRAWN
        ),
    }


def of_several() -> dict[str, Sent]:
    clear = Image.new("RGBA", PICTURE.size, (0, 0, 0, 0))
    blank, later = Image.new("RGB", PICTURE.size, "white"), Image.fromarray(255 - DRAWN)
    frames = {"save_all": True, "append_images": [PICTURE.convert("RGBA"), later.convert("RGBA")]}
    pages = {"save_all": True, "append_images": [later]}
    small = Image.fromarray(255 - DRAWN[::4, ::4])
    preview = {"save_all": True, "append_images": [PICTURE], "tiffinfo": {254: 1}}
    whole_first = saved(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[later])
    flat = np.full((HEIGHT, WIDTH, 3), 255)
    own = (OWN_TABLE,)
    with_preview = bytearray(saved(small, "TIFF", **preview))
    return {
        "animated WebP": Sent(whole_first, DRAWN),
        "animated WebP, first frame blank": Sent(
            saved(clear, "WEBP", lossless=True, **frames), DRAWN
        ),
        "animated PNG, first frame blank": Sent(saved(clear, "PNG", **frames), DRAWN),
        "animated PNG with a picture before": Sent(
            saved(blank, "PNG", save_all=True, default_image=True, append_images=[PICTURE, later]),
            DRAWN,
        ),
        "animated GIF, first frame blank": Sent(
            saved(blank, "GIF", save_all=True, append_images=[PICTURE]), DRAWN, 12
        ),
        "blank throughout": Sent(
            saved(blank, "GIF", save_all=True, append_images=[Image.new("RGB", blank.size, "red")]),
            flat,
        ),
        "TIFF of two pages": Sent(saved(PICTURE, "TIFF", **pages), DRAWN, 0, own),
        "TIFF with a preview before": Sent(first_is_preview(bytes(with_preview)), DRAWN, 0, own),
    }


def first_is_preview(data: bytes) -> bytes:
    """The TIFF with only its first directory marked as a small copy (tag 254)."""
    mark = (254).to_bytes(2, "little")
    first = data.index(mark)
    second = data.index(mark, first + 12)
    return data[: second + 8] + bytes(4) + data[second + 12 :]


def whole_or_cut() -> dict[str, Sent]:
    text, noise = b"Comment\0", bytes(3_000_000)
    compressed = chunk(b"zTXt", text + b"\0" + zlib.compress(noise))
    international = chunk(b"iTXt", text + b"\1\0\0\0" + zlib.compress(noise))
    wrong = chunk(b"tEXt", text + b"hello")[:-4] + bytes(4)
    plain = png(DRAWN)
    # Rows of noise, so that bytes are spread over the picture as its pixels are.
    rough = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    rough_png = png(rough)
    large = Image.fromarray(drawn(512, 512))
    jpeg = saved(large, "JPEG", quality=95, subsampling=0)
    progressive = saved(large, "JPEG", quality=95, subsampling=0, progressive=True)
    restarts = saved(large, "JPEG", quality=95, subsampling=0, restart_marker_blocks=4)
    noisy = saved(Image.fromarray(rough), "JPEG", quality=90)
    bmp, webp = saved(PICTURE, "BMP"), saved(Image.fromarray(rough), "WEBP", lossless=True)
    avif = saved(PICTURE, "AVIF", quality=100, subsampling="4:4:4")
    gif = saved(Image.fromarray(grey_of(rough)), "GIF")
    p3 = profile(P3_TO_XYZ, 2.2, padding=2 << 20)
    big = np.asarray(large)
    rough_tiff = saved(Image.fromarray(rough), "TIFF")
    return {
        "PNG with a compressed text of 3 MB": Sent(png(DRAWN, extras=compressed), DRAWN),
        "PNG with an iTXt of 3 MB": Sent(png(DRAWN, extras=international), DRAWN),
        "PNG with texts of 90 MB": Sent(
            png(DRAWN, extras=30 * chunk(b"tEXt", text + noise)), DRAWN
        ),
        "PNG with a profile of 2 MB": Sent(
            saved(PICTURE, "PNG", icc_profile=p3), from_profile(DRAWN, P3_TO_XYZ, 2.2), 1
        ),
        "PNG with a damaged text": Sent(png(DRAWN, extras=wrong), DRAWN),
        "PNG without its end": Sent(plain[:-12], DRAWN),
        "PNG cut in its last sum": Sent(plain[:-14], DRAWN),
        "PNG less 900 bytes": Sent(rough_png[:-900], rough, 1),
        "PNG less a third": Sent(
            rough_png[: len(rough_png) * 2 // 3], r"cut off: 33\.\d% of its pixels are missing"
        ),
        "PNG whose pixels are damaged": Sent(
            rough_png[:5000] + bytes(9) + rough_png[5009:], "is broken"
        ),
        "JPEG without its end": Sent(jpeg[:-2], big, 1.5),
        "JPEG less 6 bytes": Sent(jpeg[:-6], big, 1.5),
        "JPEG with bytes after its end": Sent(jpeg + b"a film" * 1000, big, 1.5),
        "JPEG that ends in zeros": Sent(jpeg[:-2] + bytes(500), big, 1.5),
        "progressive JPEG without its end": Sent(progressive[:-2], big, 1.5),
        "JPEG with restarts, less 3 bytes": Sent(restarts[:-3], big, 1.5),
        "JPEG less a half": Sent(
            noisy[: len(noisy) // 2], r"cut off: (49|5[0-3])\.\d% of its pixels are missing"
        ),
        "JPEG less a half, then zeros": Sent(
            noisy[: len(noisy) // 2] + bytes(len(noisy) // 2), r"cut off: (49|5[0-3])\.\d% of its p"
        ),
        "JPEG with restarts, less a half": Sent(restarts[: len(restarts) // 2], "cut off: "),
        "progressive JPEG less a third": Sent(
            progressive[: len(progressive) * 2 // 3], "cut off: "
        ),
        "JPEG of a header": Sent(jpeg[:300], "^is broken: not a JPEG that can be read"),
        "BMP less 20 bytes": Sent(bmp[:-20], DRAWN, 1),
        "BMP less a half": Sent(bmp[: len(bmp) // 2], r"cut off: 50\.0% of its pixels"),
        "WebP less a half": Sent(webp[: len(webp) // 2], r"cut off: 50\.0% of its bytes"),
        "AVIF less a half": Sent(avif[: len(avif) // 2], "cut off: .*% of its bytes"),
        "GIF without its end": Sent(gif[:-1], in_rgb(grey_of(rough))),
        "GIF less a half": Sent(gif[: len(gif) // 2], "is broken: .*truncated"),
        "TIFF less a half": Sent(rough_tiff[: len(rough_tiff) // 2], "is broken", 0, (OWN_TABLE,)),
    }


def formats() -> dict[str, Sent]:
    header = b"\x89PNG\r\n\x1a\n"

    def claims(width: int, height: int) -> bytes:
        sides = width.to_bytes(4) + height.to_bytes(4)
        body = chunk(b"IHDR", sides + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"")
        return header + body + chunk(b"IEND", b"")

    long = np.zeros((2, 500, 3), np.uint8)
    return {
        "PNG": Sent(png(DRAWN), DRAWN),
        "WebP": Sent(saved(PICTURE, "WEBP", lossless=True), DRAWN),
        "BMP": Sent(saved(PICTURE, "BMP"), DRAWN),
        "AVIF": Sent(saved(PICTURE, "AVIF", quality=100, subsampling="4:4:4"), DRAWN, 2),
        "TIFF in a table": Sent(saved(PICTURE, "TIFF"), DRAWN, 0, (OWN_TABLE,)),
        "TIFF of a stranger": Sent(
            saved(PICTURE, "TIFF"), "^is TIFF, and none of PNG, JPEG", 0, (STRANGER,)
        ),
        "nothing": Sent(b"", "^is empty$"),
        "text": Sent(b"a dog", "^is none of PNG, JPEG, WEBP, GIF, BMP, AVIF, HEIC"),
        "SVG": Sent(b"<svg/>", "^is none of PNG"),
        "PostScript": Sent(b"%!PS-Adobe-3.0 EPSF-3.0\n", "^is none of PNG"),
        "GIF of a header": Sent(b"GIF89a", "^is broken: not a GIF that can be read"),
        "PNG of a header": Sent(header, "^is broken: not a PNG that can be read"),
        "a bomb": Sent(claims(30_000, 30_000), "30000 x 30000 pixels; at most"),
        "a stranger's bomb": Sent(claims(8_000, 8_000), "8000 x 8000 pixels", 0, (STRANGER,)),
        "a long bomb": Sent(claims(200_000, 1), "200000 x 1 pixels"),
        "a stripe": Sent(png(long), "500 x 2 pixels; one side may be at most 200 times the other"),
    }


TABLE = {
    f"{kind}: {name}": sent
    for kind, table in {
        "upright": upright,
        "deep": deep,
        "transparent": transparent,
        "coloured": coloured,
        "of several": of_several,
        "whole or cut": whole_or_cut,
        "formats": formats,
    }.items()
    for name, sent in table().items()
}


@pytest.mark.parametrize("name", TABLE)
def test_a_picture_is_as_it_was_drawn_or_refused(name: str) -> None:
    sent = TABLE[name]
    for policy in sent.policies:
        if isinstance(sent.expected, str):
            with pytest.raises(BadImage, match=sent.expected):
                decode_image(sent.data, policy)
            continue
        image = decode_image(sent.data, policy)
        assert (image.mode, image.size) == ("RGB", sent.expected.shape[1::-1])
        differ = np.abs(np.asarray(image, dtype=float) - sent.expected)
        assert differ.mean() <= sent.off
        if not name.startswith("whole or cut"):
            assert differ.max() <= 60 * sent.off


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("of several")])
def test_tables_have_the_same_pictures(name: str) -> None:
    """Features, indexes and decoded images come from `frames_of`."""
    sent = TABLE[name]
    if OWN_TABLE not in sent.policies:
        return
    if isinstance(sent.expected, str):
        with pytest.raises(BadImage, match=sent.expected):
            frames_of(sent.data)
    else:
        (frame,) = frames_of(sent.data)
        assert frame.tobytes() == decode_image(sent.data, OWN_TABLE).tobytes()


def test_a_picture_before_the_frames_of_a_png_is_none_of_them() -> None:
    frames = frames_of(TABLE["of several: animated PNG with a picture before"].data)
    assert [np.asarray(frame).tolist() for frame in frames] == [
        DRAWN.tolist(),
        (255 - DRAWN).tolist(),
    ]


def test_nothing_but_pixels_is_left() -> None:
    assert decode_image(turned(6, "JPEG"), STRANGER).info == {}


def test_heic_is_read_with_its_extra() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    rows = np.ascontiguousarray(STORED[6](DRAWN))
    data = saved(Image.fromarray(rows), "HEIF", quality=100, exif=exif_of(6))
    shown = np.asarray(decode_image(data, STRANGER), dtype=float)
    assert shown.shape == DRAWN.shape
    assert np.abs(shown - DRAWN).mean() < 3
    with pytest.raises(BadImage, match=r"cut off: .*% of its bytes are missing"):
        decode_image(data[: len(data) // 2], STRANGER)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_without_its_extra_is_named_with_the_remedy(
    brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + bytes(100)
    for policy in (STRANGER, OWN_TABLE):
        with pytest.raises(BadImage, match=r"^is HEIC, .*pip install pillow-heif"):
            decode_image(data, policy)
    with pytest.raises(BadImage, match=r"^is HEIC"):
        frames_of(data)
