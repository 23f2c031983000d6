"""Write lines of text into strips of a picture."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


class Strip:
    """A strip of one colour, into which text and marks are drawn.

    Attributes:
        width: The width in pixels.
        height: The height in pixels.
    """

    def __init__(self, width: int, height: int, background: Colour) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, size: int, colour: Colour) -> None:
        """Write a line with its left end at ``x`` and the middle of its height at ``y``."""
        self._draw.text((x, y), text, fill=colour, font=_font(size), anchor="lm")

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle, whose ends belong to it."""
        self._draw.rectangle((left, top, right, bottom), fill=colour)

    def polygon(self, corners: list[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon of corners ``(x, y)``."""
        self._draw.polygon(corners, fill=colour)

    def put(self, left: int, top: int, pixels: NDArray[np.uint8]) -> None:
        """Put pixels ``(h, w, 3)`` RGB at a place of the strip."""
        self._image.paste(Image.fromarray(pixels), (left, top))

    def pixels(self) -> NDArray[np.uint8]:
        """Return the strip as ``(height, width, 3)`` uint8 RGB."""
        return np.asarray(self._image, np.uint8)


def text_width(text: str, size: int) -> float:
    """Return the width of a line in pixels."""
    return float(_font(size).getlength(text))


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Break a text into lines that fit a width. A word that is wider is broken too."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".lstrip()
        if text_width(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while text_width(line, size) > width and len(line) > 1:
            end = _fitting(line, size, width)
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line] if line else lines


def _fitting(word: str, size: int, width: float) -> int:
    """Return the number of letters of a word that fit a width, at least one."""
    return max(1, bisect_right(range(1, len(word)), width, key=lambda n: text_width(word[:n], size)))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is in the package and therefore on every machine."""
    return ImageFont.load_default(size)
