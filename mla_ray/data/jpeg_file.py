"""Detection and completion of truncated JPEG files, with the share of missing pixels.

libjpeg fills missing pixels with gray and does not report where they begin. This module decodes a
truncated file with several different endings. The pixels before the first difference between the
results come from the file.

Pillow's option `ImageFile.LOAD_TRUNCATED_IMAGES` is not used. It applies to all threads of a
process, and it does not report what is missing.
"""

import hashlib
import re
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

END = b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Marker that ends coded pixels: no restart marker, and no escaped 0xFF byte of the pixels."""
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
COEFFICIENTS = 64
ENDINGS = 3


class _Markers:
    """Markers of a file, which can be truncated.

    Attributes:
        whole: Whether the file has its end marker.
        unit: Height of a row of coded units in pixels.
        progressive: Whether the file is progressive.
        missing_bits: Number of missing bits of each coefficient, by component. It is -1 for a
            coefficient that no scan has contained so far.

    """

    def __init__(self, data: bytes) -> None:
        self.whole, self.unit, self.progressive = False, 8, False
        self.missing_bits: dict[int, list[int]] = {}
        place = 2
        while place + 1 < len(data):
            if data[place] != 0xFF or data[place + 1] in (0x00, 0x01, 0xFF):
                place += 1
                continue
            marker = data[place + 1]
            if marker == END[1]:
                self.whole = True
                return
            length = int.from_bytes(data[place + 2 : place + 4])
            content = data[place + 4 : place + 2 + length]
            place += 2 + length
            if marker in FRAMES and len(content) > 5:
                self._frame(content, marker in PROGRESSIVE)
            elif marker == 0xDA and content:
                self._scan(content)
                after = MARKER.search(data, place)
                place = after.start() if after else len(data)

    def _frame(self, content: bytes, progressive: bool) -> None:
        self.progressive = progressive
        components = [content[start : start + 3] for start in range(6, len(content) - 2, 3)]
        self.unit = 8 * max([part[1] & 15 for part in components], default=1)
        self.missing_bits = {part[0]: [-1] * COEFFICIENTS for part in components}

    def _scan(self, content: bytes) -> None:
        count = content[0]
        first, last, bits = content[-3:] if self.progressive else (0, COEFFICIENTS - 1, 0)
        for component in content[1 : 1 + 2 * count : 2]:
            of_component = self.missing_bits.setdefault(component, [-1] * COEFFICIENTS)
            of_component[first : last + 1] = [bits & 15] * (last + 1 - first)


def is_whole(data: bytes) -> bool:
    """Return whether the file has its end marker.

    Data after the end marker is ignored, for example a video that a phone appends.
    """
    return _Markers(data).whole


def completed(data: bytes, most: float) -> tuple[bytes, float]:
    """Add the end marker to a truncated file.

    Incomplete pixels are gray. If only the last of several scans is incomplete, they are less sharp
    instead.

    Args:
        data: Truncated file.
        most: Maximum share of incomplete pixels, 0 to 1.

    Returns:
        The completed file and the share of incomplete pixels. The file is unchanged if this share
        exceeds `most`.

    """
    markers = _Markers(data)
    # An interrupted download can leave zeros at the end of the file.
    body = data.rstrip(b"\0").rstrip(b"\xff")
    ended = body + END
    if not markers.missing_bits or any(map(any, markers.missing_bits.values())):
        return data, 1.0
    shown = _pixels(ended)
    others = [_pixels(body + _noise(number) + END) for number in range(ENDINGS)]
    missing = max(_missing((shown != other).any(axis=2), markers.unit) for other in others)
    return (data if missing > most else ended), missing


def _pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a file to pixels `[H, W, C]` uint8."""
    pixels = np.asarray(Image.open(BytesIO(data), formats=["JPEG"]))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _missing(differs: npt.NDArray[np.bool_], unit: int) -> float:
    """Return the share of pixels from the first different pixel on, in the order of coding."""
    height, width = differs.shape
    if not differs.any():
        return 0.0
    # Subsampled colors also change up to two pixel rows above the incomplete units.
    row = (int(differs.any(axis=1).argmax()) + 2) // unit * unit
    in_row = differs[row : row + unit - 2]
    column = int(in_row.any(axis=0).argmax()) if in_row.any() else width
    below = max(height - row - unit, 0) * width
    return float((below + min(unit, height - row) * (width - column)) / (height * width))


def _noise(number: int) -> bytes:
    """Return pseudorandom coded pixels that contain each of the eight restart markers."""
    noise = b"".join(hashlib.blake2b(bytes([number, part])).digest() for part in range(32))
    noise = noise.replace(b"\xff", b"\xfe")
    return noise + b"".join(b"\xff" + bytes([0xD0 + mark]) + noise for mark in range(8)) * 2
