"""Removal of PNG chunks that stop Pillow's decoder, and completion of truncated PNG files.

Pillow refuses a PNG with large texts, with a large color profile, or with a wrong checksum in a
chunk without pixels. Its option `ImageFile.LOAD_TRUNCATED_IMAGES` is not used. It applies to all
threads of a process, and it does not report what is missing.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from mla_ray.data.srgb import MAX_PROFILE

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 1 << 20
"""Maximum size of one text in bytes. Pillow's limit is 1 MiB."""
MAX_TEXTS = 32 << 20
"""Maximum size of all texts of a file in bytes. Pillow's limit is 64 MiB."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Number of channels by color type."""
# Passes of Adam7: first column, first row, step between columns, step between rows.
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
    """Whether the checksum is right. It is not checked for critical chunks, because the decoder
    checks those.
    """


def is_whole(data: bytes) -> bool:
    """Return whether the file has its end chunk or is an animation.

    An animation counts as whole, because this module cannot complete it.
    """
    names = {chunk.name for chunk in _chunks(data)}
    return b"IEND" in names or b"acTL" in names


def scale_transparency(image: Image.Image, data: bytes) -> None:
    """Scale the transparent color of a loaded PNG to 8 bits, like its pixels."""
    bits, colour = data[24], image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int) and bits < 8:
        image.info["transparency"] = colour * 255 // ((1 << bits) - 1)
    elif image.mode == "RGB" and isinstance(colour, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def lightened(data: bytes) -> tuple[bytes, bytes | None]:
    """Remove large texts, large color profiles and damaged ancillary chunks from a file.

    Small texts stay, because they can hold the orientation (XMP, or EXIF from ImageMagick).

    Returns:
        The file, and its color profile if the profile was removed for its size but has at most
        `MAX_PROFILE` bytes.

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
    """Fill the missing pixels of a truncated file with zeros.

    Args:
        data: Truncated file.
        most: Maximum share of missing pixels, 0 to 1.

    Returns:
        The completed file and the share of missing pixels. The file is unchanged if this share
        exceeds `most`.

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
    """Yield the chunks up to the end chunk. With `unfinished`, also a truncated pixel chunk."""
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
    """Return the size of a chunk's content in bytes, decompressed up to just above the limit."""
    packed = b""
    if chunk.name in (b"zTXt", b"iCCP"):
        packed = chunk.content.partition(b"\0")[2][1:]
    elif chunk.name == b"iTXt":
        compressed = chunk.content.partition(b"\0")[2]
        if compressed[:1] == b"\1":  # before a method and two null-terminated texts
            packed = b"".join(compressed[2:].split(b"\0", 2)[2:])
    return max(len(chunk.content), len(_inflate(packed, MAX_TEXT + 1)))


def _inflate(packed: bytes, most: int) -> bytes:
    """Decompress up to `most` bytes, and keep the part before any damage."""
    inflating, there = zlib.decompressobj(), bytearray()
    try:
        # Decompress in pieces, to keep the output of the pieces before an error.
        for start in range(0, len(packed), 4096):
            piece = packed[start : start + 4096]
            while piece and len(there) < most:
                there += inflating.decompress(piece, most - len(there))
                piece = inflating.unconsumed_tail
    except zlib.error:
        pass
    return bytes(there)


def _size(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Return the size of all rows in bytes. Each row starts with a filter byte."""
    size = 0
    for left, top, right, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits // 8))
    return size


def _written(name: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + sum_
