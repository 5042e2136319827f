"""PNG files by their chunks: without what stops a decoder, and completed where they end early.

Pillow refuses a PNG for the size of its texts or of its colour profile, and for a check sum of a
chunk that has no pixels. Its switch to be lenient (`ImageFile.LOAD_TRUNCATED_IMAGES`) is one for
all threads of a process and does not say what is missing.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from mla_ray.data.srgb import MAX_PROFILE

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 20
"""Bytes of one text, and"""
MAX_TEXTS = 32 << 20
"""of all texts that are looked at in a file; Pillow's limits are 1 and 64 MiB."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
# Of Adam7: first column and row of a pass, and the steps between its columns and rows.
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class _Chunk(NamedTuple):
    name: bytes
    content: bytes
    whole: bytes
    sound: bool
    """Whether its check sum is right; of chunks that a picture needs, the decoder looks at it."""


def is_whole(data: bytes) -> bool:
    """Whether the file has its end, or is an animation, of which a part is not completed here."""
    names = {chunk.name for chunk in _chunks(data)}
    return b"IEND" in names or b"acTL" in names


def scale_transparency(image: Image.Image, data: bytes) -> None:
    """Have the transparent colour of a loaded PNG in 8 bits, as Pillow has the others."""
    bits, colour = data[24], image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int) and bits < 8:
        image.info["transparency"] = colour * 255 // ((1 << bits) - 1)
    elif image.mode == "RGB" and isinstance(colour, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def lightened(data: bytes) -> tuple[bytes, bytes | None]:
    """The file without large texts and damaged extras, and its profile if Pillow took it for large.

    A text may say how a picture is turned (XMP, EXIF of ImageMagick), so small ones stay.
    """
    kept, inflated, profile = [SIGNATURE], 0, None
    changed = False
    end = len(SIGNATURE)
    for chunk in _chunks(data):
        end += len(chunk.whole)
        drop = not chunk.sound
        if chunk.sound and chunk.name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            size = _inflated(chunk) if inflated <= MAX_TEXTS else MAX_TEXTS
            inflated += size
            drop = size > MAX_TEXT or inflated > MAX_TEXTS
            if chunk.name == b"iCCP" and drop and profile is None:
                profile = _inflate(chunk.content.partition(b"\0")[2][1:], MAX_PROFILE + 1)
        changed |= drop
        if not drop:
            kept.append(chunk.whole)
    if profile and len(profile) > MAX_PROFILE:
        profile = None
    return (b"".join(kept) + data[end:], profile) if changed else (data, None)


def completed(data: bytes, most: float) -> tuple[bytes, float]:
    """A file that ends early, with zeros for the pixels it lacks, and their part of all: 0 to 1.

    If more than `most` of them are missing, the file as it is.
    """
    width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    expected = _size(width, height, bits * CHANNELS.get(colours, 1), bool(interlaced))
    chunks = list(_chunks(data, unfinished=True))
    pixels = b"".join(chunk.content for chunk in chunks if chunk.name == b"IDAT")
    there = _inflate(pixels, expected)
    missing = 1 - len(there) / expected
    if missing > most:
        return data, missing
    before = [chunk.whole for chunk in chunks if chunk.name not in (b"IDAT", b"IEND")]
    content = zlib.compress(there.ljust(expected, b"\0"), 1)
    file = b"".join([SIGNATURE, *before, _written(b"IDAT", content), _written(b"IEND", b"")])
    return file, missing


def _chunks(data: bytes, unfinished: bool = False) -> Iterator[_Chunk]:
    """Up to the end; with `unfinished` also pixels that are cut off."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name, end = data[place + 4 : place + 8], place + 12 + length
        content = data[place + 8 : place + 8 + length]
        if end > len(data):
            if unfinished and name == b"IDAT":
                yield _Chunk(name, content, data[place:], False)
            return
        whole = data[place:end]
        yield _Chunk(name, content, whole, name[:1].isupper() or whole == _written(name, content))
        place = end
        if name == b"IEND":
            return


def _inflated(chunk: _Chunk) -> int:
    """Bytes of what a chunk holds; of what is compressed no more than are over the limit."""
    packed = b""
    if chunk.name in (b"zTXt", b"iCCP"):
        packed = chunk.content.partition(b"\0")[2][1:]
    elif chunk.name == b"iTXt":
        compressed = chunk.content.partition(b"\0")[2]
        if compressed[:1] == b"\1":  # after it a method, and two texts that end in zero
            packed = b"".join(compressed[2:].split(b"\0", 2)[2:])
    return max(len(chunk.content), len(_inflate(packed, MAX_TEXT + 1)))


def _inflate(packed: bytes, most: int) -> bytes:
    """What can be had of it, at most so many bytes."""
    inflating, there = zlib.decompressobj(), bytearray()
    try:
        # In pieces: of a stream that breaks, what came before is kept.
        for start in range(0, len(packed), 4096):
            piece = packed[start : start + 4096]
            while piece and len(there) < most:
                there += inflating.decompress(piece, most - len(there))
                piece = inflating.unconsumed_tail
    except zlib.error:
        pass
    return bytes(there)


def _size(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte that names its filter."""
    size = 0
    for left, top, right, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits // 8))
    return size


def _written(name: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + sum_
