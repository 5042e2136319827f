"""JPEG files by their markers: whether they end, and what of the picture is missing if not.

libjpeg fills what is missing with grey and does not say where that begins. So a file that ends
early is decoded with several endings: up to where the pictures are equal, they are the file's.
Pillow's switch to be lenient (`ImageFile.LOAD_TRUNCATED_IMAGES`) is one for all threads of a
process and does not say what is missing.
"""

import hashlib
import re
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

END = b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""After coded pixels: none that goes on with them, and no 0xFF of theirs."""
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
COEFFICIENTS = 64
ENDINGS = 3


class _Markers:
    """What the markers of a file say, as far as it goes.

    Attributes:
        whole: it has its end.
        unit: height of a row of coded units, in pixels.
        missing_bits: of each coefficient of each component that has been announced; below zero
            where nothing has come.

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
    """Whether the file has its end; what comes after that, a telephone's film say, is not seen."""
    return _Markers(data).whole


def completed(data: bytes, most: float) -> tuple[bytes, float]:
    """A file that ends early, with an end, and the part of its pixels that are not whole: 0 to 1.

    If more than `most` of them are, the file as it is. Else they are grey, or, where the last scan
    of several is not whole, less sharp.
    """
    markers = _Markers(data)
    # A download that was broken off may be zeros from there on.
    body = data.rstrip(b"\0").rstrip(b"\xff")
    ended = body + END
    if not markers.missing_bits or any(map(any, markers.missing_bits.values())):
        return data, 1.0
    shown = _pixels(ended)
    others = [_pixels(body + _noise(number) + END) for number in range(ENDINGS)]
    missing = max(_missing((shown != other).any(axis=2), markers.unit) for other in others)
    return (data if missing > most else ended), missing


def _pixels(data: bytes) -> npt.NDArray[np.uint8]:
    """Channels last, [H, W, C]."""
    pixels = np.asarray(Image.open(BytesIO(data), formats=["JPEG"]))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _missing(differs: npt.NDArray[np.bool_], unit: int) -> float:
    """The part of the picture from the first pixel that differs on, in the order of coding."""
    height, width = differs.shape
    if not differs.any():
        return 0.0
    # Colours of a coarser grid reach two pixels up.
    row = (int(differs.any(axis=1).argmax()) + 2) // unit * unit
    in_row = differs[row : row + unit - 2]
    column = int(in_row.any(axis=0).argmax()) if in_row.any() else width
    below = max(height - row - unit, 0) * width
    return float((below + min(unit, height - row) * (width - column)) / (height * width))


def _noise(number: int) -> bytes:
    """Coded pixels at random, with each of the eight marks between them that a file may use."""
    noise = b"".join(hashlib.blake2b(bytes([number, part])).digest() for part in range(32))
    noise = noise.replace(b"\xff", b"\xfe")
    return noise + b"".join(b"\xff" + bytes([0xD0 + mark]) + noise for mark in range(8)) * 2
