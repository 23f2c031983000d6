"""Turn the arrays of a source into 8-bit RGB by what is declared about them, never by a guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.device.limits import check_frame_size
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
        declared: The channels that the site's settings declare. They count more than those of the source.
        window: The levels that become 0 and 255 in arrays of more than 8 bits.

    Returns:
        ``(H, W, 3)`` uint8, RGB.

    Raises:
        ImageError: Nobody declares the channels, the array has another number of them, it exceeds a limit, or it has
            more than 8 bits and there is no window.
    """
    channels = declared or own
    if not channels:
        raise ImageError(
            "the source does not tell the channels of its frames. Declare them with color, such as rgb or bayer_rggb."
        )
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(f"a frame must be (H, W) or (H, W, 3) with at least one pixel, got {array.shape}")
    check_frame_size(*array.shape[:2])
    if channels not in ("rgb", "bgr"):
        array = _single(array, channels)
    elif array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"a frame of shape {array.shape} is not {channels}. Declare its channels with color."
        )
    if channels in _BAYER:
        if array.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"a Bayer frame must have 8 or 16 bits, got {array.dtype}")
        array = cv2.cvtColor(np.ascontiguousarray(array), _BAYER[channels])
        channels = "rgb"
    if array.dtype == np.uint8:
        return pixels_of(array, color="gray" if channels == "gray" else "bgr" if channels == "bgr" else "rgb")
    if window is None:
        raise ImageError(
            f"the frames have {array.dtype} pixels, and nobody declares which levels become 0 and 255. "
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
        raise ImageError(f"a frame with colours of its own is not {channels}. Check the setting color.")
    return first
