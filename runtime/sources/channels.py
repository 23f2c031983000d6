"""Turn the arrays of a source into 8-bit RGB by what is declared about them, never by a guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.device.limits import size_problem
from flowedge.runtime.frames.pixel_range import PixelRange, in_8_bits
from flowedge.runtime.frames.pixels import pixels_of
from flowedge.runtime.sources.settings import Channels

# OpenCV names a pattern by the second and third pixel of its second row.
_BAYER: Final[Mapping[str, int]] = {
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
}


def rgb_of(
    array: NDArray[Any], own: Channels, declared: Channels = "", window: PixelRange | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of an array as 8-bit RGB.

    Args:
        array: ``(H, W)`` or ``(H, W, 3)``, unsigned integers of 8 or more bits, or floating point.
        own: The channels that the source itself declares, or an empty text.
        declared: The channels that the site's settings declare, which count more than those of the source.
        window: The levels that become 0 and 255 in arrays of more than 8 bits.

    Returns:
        ``(H, W, 3)`` uint8, RGB.

    Raises:
        ImageError: Nobody declares the channels, the array has another number of them, it exceeds a limit, or it has
            more than 8 bits and there is no window. The text is the end of a sentence that begins with the frame's
            name.
    """
    channels = declared or own
    if not channels:
        raise ImageError(
            "has channels that nobody declares. Declare them with color, such as rgb or bayer_rggb."
        )
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(f"has the shape {array.shape}, and (H, W) or (H, W, 3) is read")
    if problem := size_problem(*array.shape[:2]):
        raise ImageError(problem)
    if channels not in ("rgb", "bgr"):
        array = _single(array, channels)
    elif array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"has the shape {array.shape}, which is not {channels}. Declare its channels with color."
        )
    if channels in _BAYER:
        if array.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"has {array.dtype} pixels, and a Bayer frame must have uint8 or uint16.")
        array = cv2.cvtColor(np.ascontiguousarray(array), _BAYER[channels])
        channels = "rgb"
    if array.dtype == np.uint8:
        return pixels_of(array, color="gray" if channels == "gray" else "bgr" if channels == "bgr" else "rgb")
    if window is None:
        raise ImageError(
            f"has {array.dtype} pixels, and nobody declares which levels become 0 and 255. "
            "Declare them with window = [LOW, HIGH]."
        )
    levels = in_8_bits(array, window)
    return levels[..., ::-1] if channels == "bgr" else levels


def _single(array: NDArray[Any], channels: str) -> NDArray[Any]:
    """Return the one channel of a grey frame. Readers of files repeat it three times.

    Raises:
        ImageError: The frame has colours.
    """
    if array.ndim == 2:
        return array
    first: NDArray[Any] = array[..., 0]
    if any(not np.array_equal(first, array[..., n]) for n in range(1, array.shape[2])):
        raise ImageError(f"has colours, so it is not {channels}. Check the setting color.")
    return first
