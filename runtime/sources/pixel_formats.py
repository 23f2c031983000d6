"""Know the pixel formats of industrial cameras by the names of GenICam's Pixel Format Naming Convention."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.sources.settings import Channels

_NAME: Final = re.compile(r"(Mono|BayerRG|BayerGR|BayerGB|BayerBG|RGBa?|BGRa?)(8|10|12|14|16)")
_CHANNELS: Final[dict[str, tuple[Channels, int]]] = {
    "Mono": ("gray", 1),
    "BayerRG": ("bayer_rggb", 1),
    "BayerGR": ("bayer_grbg", 1),
    "BayerGB": ("bayer_gbrg", 1),
    "BayerBG": ("bayer_bggr", 1),
    "RGB": ("rgb", 3),
    "RGBa": ("rgb", 4),
    "BGR": ("bgr", 3),
    "BGRa": ("bgr", 4),
}


def array_of(content: NDArray[Any], name: str, height: int, width: int) -> tuple[NDArray[Any], Channels]:
    """Return a copy of a camera's picture as an array, with its channels.

    Args:
        content: The samples or the bytes of the picture, one after the other.
        name: The pixel format. Formats that pack several samples into shared bytes are not read.
        height: The number of rows.
        width: The number of columns.

    Returns:
        ``(height, width)`` or ``(height, width, 3)``, uint8 or uint16.

    Raises:
        ImageError: The format is not read, or the picture is not whole. The text is the end of a sentence.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ImageError(
            f"is in the pixel format {name}, which is not read. Set PixelFormat to Mono8, BayerRG8 or RGB8."
        )
    channels, count = _CHANNELS[found[1]]
    samples = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
    if found[2] != "8":
        samples = samples[: samples.size // 2 * 2].view("<u2")
    wanted = height * width * count
    if samples.size < wanted or wanted == 0:
        raise ImageError(f"is not whole: {samples.size} of {wanted} samples came")
    array = samples[:wanted].reshape((height, width) if count == 1 else (height, width, count))
    # A fourth channel is transparency, which no camera has.
    return (array if count == 1 else array[..., :3]).copy(), channels
