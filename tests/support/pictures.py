"""Files of pictures, made byte by byte where Pillow does not write them."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Colour type by channels."""


def drawn(height: int = 96, width: int = 128) -> Pixels:
    """A picture [H, W, 3] whose four corners and colours differ; not grey anywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 30 + 200 * columns // width
    green = 20 + 150 * rows // height
    blue = np.where(rows < height // 3, 220, 40)
    picture = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    picture[: height // 4, : width // 4] = (250, 10, 10)
    return picture


def grey_of(picture: Pixels) -> Pixels:
    """Its red, as a picture of one channel [H, W]."""
    return picture[:, :, 0].copy()


def in_rgb(grey: npt.NDArray[np.generic]) -> Pixels:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + sum_


def png(
    samples: npt.NDArray[np.integer], bits: int = 8, extras: bytes = b"", colours: int | None = None
) -> bytes:
    """A PNG of samples [H, W] or [H, W, C] of so many bits; `extras`: chunks before its pixels."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in flat]
    else:
        shifts = np.arange(bits - 1, -1, -1)
        bit_rows = (flat[:, :, None] >> shifts & 1).reshape(height, -1).astype(np.uint8)
        rows = [np.packbits(row).tobytes() for row in bit_rows]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    kind = PNG_COLOURS[channels] if colours is None else colours
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    ends = chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extras + ends


def tiff(content: bytes, width: int, height: int, **tags: int | Sequence[int]) -> bytes:
    """A TIFF of one uncompressed strip; tags are `t` and their number, as `t258=12`."""
    entries: dict[int, int | Sequence[int]] = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        273: 0,
        277: 1,
        278: height,
        279: len(content),
    }
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries[273] = 8  # pixels come before the directory
    directory, extra = b"", b""
    after = 8 + len(content) + len(content) % 2 + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        if isinstance(value, int):
            directory += struct.pack("<HHII", tag, 4, 1, value)
            continue
        packed = struct.pack(f"<{len(value)}H", *value)
        if len(packed) <= 4:
            directory += struct.pack("<HHI", tag, 3, len(value)) + packed.ljust(4, b"\0")
        else:
            directory += struct.pack("<HHII", tag, 3, len(value), after + len(extra))
            extra += packed
    padded = content + b"\0" * (len(content) % 2)
    start = 8 + len(padded)
    count = struct.pack("<H", len(entries))
    return struct.pack("<2sHI", b"II", 42, start) + padded + count + directory + bytes(4) + extra


# --- colour profiles ----------------------------------------------------------------------------

SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
"""Of light, with white at D50 (Bradford), as profiles have it; from brucelindbloom.com."""
P3_TO_XYZ = np.array(
    [
        [0.5151187, 0.2919778, 0.1571035],
        [0.2411892, 0.6922441, 0.0665668],
        [-0.0010505, 0.0418791, 0.7840713],
    ]
)
D50 = np.array([0.9642, 1.0, 0.8249])


def profile(to_xyz: Floats | None, gamma: float, padding: int = 0) -> bytes:
    """An ICC profile of version 2: of RGB by its matrix and an exponent, or of grey."""

    def fixed(values: Sequence[float]) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(D50)}
    if to_xyz is None:
        tags[b"kTRC"] = curve
    else:
        for column, name in enumerate((b"r", b"g", b"b")):
            tags[name + b"XYZ"] = b"XYZ " + bytes(4) + fixed(to_xyz[:, column].tolist())
            tags[name + b"TRC"] = curve
    text = b"mine\0"
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78 + 3)
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0" + bytes(3)
    if padding:
        noise = np.random.default_rng(0).integers(0, 256, padding // 4 * 4, dtype=np.uint8)
        tags[b"zzzz"] = b"data" + bytes(4) + noise.tobytes()
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content
    space = b"GRAY" if to_xyz is None else b"RGB "
    size = place + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def encoded(light: Floats) -> Pixels:
    """Light of 0 to 1 as sRGB has it (IEC 61966-2-1), in 8 bits."""
    light = light.clip(0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * curve).astype(np.uint8)


def from_profile(picture: Pixels, to_xyz: Floats, gamma: float) -> Pixels:
    """What pixels of `profile` are in sRGB."""
    light = (picture / 255.0) ** gamma
    return encoded(light @ to_xyz.T @ np.linalg.inv(SRGB_TO_XYZ).T)


def from_lab(lab: Floats) -> Pixels:
    """What L, a, b [H, W, 3] are in sRGB (CIE 15, white at D50)."""
    level = (lab[:, :, 0] + 16) / 116
    parts = np.stack([level + lab[:, :, 1] / 500, level, level - lab[:, :, 2] / 200], axis=-1)
    xyz = np.where(parts > 6 / 29, parts**3, 3 * (6 / 29) ** 2 * (parts - 4 / 29)) * D50
    return encoded(xyz @ np.linalg.inv(SRGB_TO_XYZ).T)
