"""Map images of more than 8 bits to 8 bits by a declared window of levels, as in the training."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.manifest import Assumed, Manifest
from flowedge.manifest_bounds import LARGEST_FLOAT32
from flowedge.runtime.device.limits import check_frame_size

PixelRange: TypeAlias = tuple[float, float]
"""The levels that become 0 and 255."""

PIXEL_RANGE_FORM: Final = "the two levels that become 0 and 255, the lower one first, such as 0,4095"
_AT_ONCE: Final = 1 << 20  # numbers that are converted at once, each to eight bytes
_TYPES: Final = "iuf"


def pixel_range_from(text: str) -> PixelRange:
    """Read a user's words, two finite numbers in ascending order with a comma between.

    Raises:
        ValueError: The text is something else.
    """
    low, high = (float(part) for part in text.split(","))
    if not -LARGEST_FLOAT32 <= low < high <= LARGEST_FLOAT32:
        raise ValueError(text)
    return low, high


def with_pixel_range(manifest: Manifest, pixel_range: PixelRange | None) -> Manifest:
    """Return the manifest with a declared window, also among its assumed values, if a window is given."""
    if pixel_range is None:
        return manifest
    declared = Assumed(
        name="pixel_range",
        value=list(pixel_range),
        given=True,
        why="No checkpoint says how images of more than 8 bits were converted for the training.",
    )
    others = tuple(one for one in manifest.assumed if one.name != declared.name)
    return msgspec.structs.replace(manifest, pixel_range=pixel_range, assumed=(*others, declared))


def is_deep(frame: NDArray[Any]) -> bool:
    """Check that a frame has grey or RGB levels of another type than uint8: ``(H, W)`` or ``(H, W, 3)``."""
    return (
        isinstance(frame, np.ndarray)
        and frame.dtype != np.uint8
        and frame.dtype.kind in _TYPES
        and (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3))
        and frame.size > 0
    )


def in_8_bits(frame: NDArray[Any], pixel_range: PixelRange) -> NDArray[np.uint8]:
    """Map levels to 8 bits: ``rint((level - low) * 255 / (high - low))`` in float64, halves to even.

    A level outside of the window counts as its nearer end, as a saturated pixel does.

    Args:
        frame: ``(H, W)`` or ``(H, W, 3)``, integers or floating point, for which `is_deep` is True.
        pixel_range: The levels that become 0 and 255.

    Returns:
        ``(H, W, 3)`` uint8, RGB, C-contiguous.

    Raises:
        ImageError: A level is NaN or infinite, or the frame exceeds a limit.
    """
    check_frame_size(*frame.shape[:2])
    if frame.dtype.kind == "u" and frame.dtype.itemsize == 2:
        levels: NDArray[np.uint8] = _levels_of_16_bits(pixel_range)[frame]
    else:
        levels = np.empty(frame.shape, np.uint8)
        rows = max(1, _AT_ONCE // (frame.size // len(frame)))
        for first in range(0, len(frame), rows):
            levels[first : first + rows] = _levels(frame[first : first + rows], pixel_range)
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


@lru_cache(maxsize=8)
def _levels_of_16_bits(pixel_range: PixelRange) -> NDArray[np.uint8]:
    """Return the 8-bit level of every 16-bit one."""
    return _levels(np.arange(1 << 16), pixel_range)


def _levels(frame: NDArray[Any], pixel_range: PixelRange) -> NDArray[np.uint8]:
    low, high = pixel_range
    exact = frame.astype(np.float64)
    if not np.isfinite(exact).all():
        raise ImageError("a frame has levels that are NaN or infinite. Check the camera or the conversion.")
    return np.rint((exact.clip(low, high) - low) * 255 / (high - low)).astype(np.uint8)
