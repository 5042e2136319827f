"""Drawings from SVG text, as pictures of any size."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image


@dataclass(frozen=True)
class Drawing:
    """An SVG drawing, with or without a margin around it.

    Attributes:
        svg: SVG text.
        margin: Margin on each side, as a share of the picture's side.

    """

    svg: str
    margin: float = 0.0

    def image(self, size: int) -> Image.Image:
        """Return an RGBA image of `size` x `size` pixels, transparent around the drawing."""
        margin = round(size * self.margin)
        png = resvg_py.svg_to_bytes(self.svg, width=size - 2 * margin, skip_system_fonts=True)
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(Image.open(BytesIO(png)).convert("RGBA"), (margin, margin))
        return canvas

    def pixels(self, size: int) -> npt.NDArray[np.uint8]:
        """Return the drawing on white, `[size, size, 3]` uint8."""
        canvas = Image.new("RGBA", (size, size), "white")
        canvas.alpha_composite(self.image(size))
        return np.asarray(canvas.convert("RGB"))

    def png(self, size: int) -> bytes:
        """Return the drawing on white as PNG bytes."""
        buffer = BytesIO()
        Image.fromarray(self.pixels(size)).save(buffer, "PNG")
        return buffer.getvalue()
