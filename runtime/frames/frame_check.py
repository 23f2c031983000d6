"""Recognise frames that no part explains: a dark camera, a lens cap, an unsharp picture, a lost channel.

`flowedge.calibration.frame_range` fits the ranges of these statistics on frames of good parts. The statistics belong to
the frame as the camera gives it, before the resize, and are the same for every engine and precision. The statistics are
taken on a reduced copy of the frame, so that their cost does not grow with the frame.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.frame_quantities import FRAME_CELLS, FRAME_QUANTITIES
from flowedge.manifest import FrameCheck

_SIDE: Final = 96  # of the reduced copy, in pixels
_SAMPLES: Final = (
    2 * _SIDE
)  # rows and columns, at least, that are taken from a larger frame before it is averaged
_DARK: Final = 4  # grey level at and below which a pixel is dark
_BRIGHT: Final = 251  # grey level at and above which a pixel is bright
_PLAIN_CELLS: Final = 7  # of all cells, in which the sharpness is measured
_COARSE_STEP: Final = 4  # pixels of the reduced copy
_SMALLEST_STEP: Final = 0.25  # grey levels; a frame without any step has a sharpness of one


def frame_statistics(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure a frame.

    Args:
        frame: ``(H, W, 3)`` uint8, RGB, of any size. The frame is not modified.

    Returns:
        ``(Q,)`` float64, one value per name of ``FRAME_QUANTITIES``, in that order. The module
        `flowedge.frame_quantities` describes each quantity.
    """
    small = _reduced(frame)
    red, green, blue = cv2.split(small)
    grey = np.asarray((red + green + blue) / 3, np.float32)
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    near = _steps(grey, 1)
    means, contrasts = cv2.meanStdDev(small)
    side = _SIDE // FRAME_CELLS
    cells = grey.reshape(FRAME_CELLS, side, FRAME_CELLS, side)
    values = (
        *means.flat,
        *contrasts.flat,
        np.sqrt(np.square(near).mean()),
        _sharpness(near, _steps(grey, _COARSE_STEP)),
        (grey <= _DARK).mean(),
        (grey >= _BRIGHT).mean(),
        colour.mean(),
        *cells.mean(axis=(1, 3)).flat,
        *cells.std(axis=(1, 3)).flat,
    )
    return np.array(values, np.float64)


class FrameChecker:
    """Compares frames with the ranges of a calibrated bundle. Threads may share one checker."""

    def __init__(self, check: FrameCheck) -> None:
        """Take the ranges of a manifest. A quantity without a range may have any value."""
        ranges = {one.quantity: one for one in check.ranges}
        self._low = np.array([ranges[name].low if name in ranges else -np.inf for name in FRAME_QUANTITIES])
        self._high = np.array([ranges[name].high if name in ranges else np.inf for name in FRAME_QUANTITIES])

    def __call__(self, frame: NDArray[np.uint8]) -> str:
        """Name the quantities that are unlike those of the good frames, or return an empty string.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB, of any size. The frame is not modified.

        Returns:
            A clause with the quantity that is farthest outside, its value and its range, and how many other quantities
            are outside as well.
        """
        return self.problem(frame_statistics(frame))

    def problem(self, statistics: NDArray[np.float64]) -> str:
        """Check a frame that `frame_statistics` has measured."""
        excess = np.maximum(self._low - statistics, statistics - self._high)
        outside = excess > 0
        if not outside.any():
            return ""
        with np.errstate(invalid="ignore"):  # a quantity without a range
            farthest = int(np.argmax(np.where(outside, excess / (self._high - self._low), -np.inf)))
        others = int(np.count_nonzero(outside)) - 1
        more = f" ({others} more outside)" if others else ""
        return (
            f"the frame is unlike the good frames of the calibration: its {FRAME_QUANTITIES[farthest]} is "
            f"{statistics[farthest]:.3g}, outside of {self._low[farthest]:.3g} to {self._high[farthest]:.3g}{more}"
        )


def _reduced(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Make a copy of ``_SIDE`` x ``_SIDE`` pixels, float32 in 0..255, for every aspect of the frame."""
    # An average over every pixel of a large frame costs more than the check is worth, so it is taken over every n-th.
    rows, columns = (max(1, length // _SAMPLES) for length in frame.shape[:2])
    sampled = np.ascontiguousarray(frame[::rows, ::columns])
    return cv2.resize(sampled, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def _steps(grey: NDArray[np.float32], distance: int) -> NDArray[np.float32]:
    """Compute the differences of pixels at a distance along x and y, ``(2, h, w)``, for pixels that have both."""
    corner = grey[:-distance, :-distance]
    return np.stack([grey[:-distance, distance:] - corner, grey[distance:, :-distance] - corner])


def _sharpness(near: NDArray[np.float32], far: NDArray[np.float32]) -> float:
    """Compute the mean step between neighbours over the mean step at a distance, in the cells with the smaller steps.

    The cells with the largest steps are left out, so that a defect on a plain surface does not decide.
    """
    fine, coarse = (_cell_means(np.abs(steps).mean(axis=0)).ravel() for steps in (near, far))
    plain = np.argsort(coarse, kind="stable")[:_PLAIN_CELLS]
    return float((fine[plain].mean() + _SMALLEST_STEP) / (coarse[plain].mean() + _SMALLEST_STEP))


def _cell_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of ``(FRAME_CELLS, FRAME_CELLS)`` cells of a plane, without the rows and columns left over."""
    side = min(values.shape) // FRAME_CELLS
    used = values[: side * FRAME_CELLS, : side * FRAME_CELLS]
    return np.asarray(used.reshape(FRAME_CELLS, side, FRAME_CELLS, side).mean(axis=(1, 3)))
