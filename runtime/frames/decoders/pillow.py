"""Take the pixels out of a Pillow image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_AT_ONCE = 1 << 22  # pixels


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return ``image.convert("RGB")`` as ``(H, W, 3)`` uint8, without whole copies on the way."""
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels
