"""Recognise frames that no part explains: a dark camera, a lens cap, an unsharp picture, a lost channel.

`flowedge.calibration.frame_range` fits the ranges of these statistics on frames of good parts. The statistics belong to
the frame as the camera gives it, before the resize, and are the same for every engine and precision. The statistics are
taken on a reduced copy of the frame, so that their cost does not grow with the frame.
"""

from __future__ import annotations

from typing import Any, Final

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
    means, contrasts = cv2.meanStdDev(small)
    red, green, blue = cv2.split(small)
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    grey = np.asarray(cv2.add(cv2.add(red, green, dtype=cv2.CV_32F), blue, dtype=cv2.CV_32F) / 3, np.float32)
    near = _steps(grey, 1)
    cells, squares = _cell_means(grey), _cell_means(np.square(grey, dtype=np.float64))
    values = (
        *means.flat,
        *contrasts.flat,
        np.sqrt((cv2.norm(near[0]) ** 2 + cv2.norm(near[1]) ** 2) / (2 * near[0].size)),
        _sharpness(near, _steps(grey, _COARSE_STEP)),
        np.count_nonzero(grey <= _DARK) / grey.size,
        np.count_nonzero(grey >= _BRIGHT) / grey.size,
        cv2.mean(colour)[0],
        *cells.flat,
        *np.sqrt(np.maximum(squares - np.square(cells, dtype=np.float64), 0)).flat,
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


def _reduced(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make a copy of ``_SIDE`` x ``_SIDE`` pixels for every aspect of the frame."""
    # An average over every pixel of a large frame costs more than the check is worth, so it is taken over every n-th.
    rows, columns = (max(1, length // _SAMPLES) for length in frame.shape[:2])
    sampled = frame[::rows, ::columns]
    if columns > 1:
        # NumPy copies single bytes at a distance several times as fast as groups of three.
        sampled = np.stack([sampled[..., channel] for channel in range(3)], axis=-1)
    sampled = np.ascontiguousarray(sampled)
    return np.asarray(cv2.resize(sampled, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _steps(grey: NDArray[np.float32], distance: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the differences of pixels at a distance along x and along y, for pixels that have both."""
    corner = grey[:-distance, :-distance]
    return grey[:-distance, distance:] - corner, grey[distance:, :-distance] - corner


def _sharpness(
    near: tuple[NDArray[np.float32], NDArray[np.float32]],
    far: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> float:
    """Compute the mean step between neighbours over the mean step at a distance, in the cells with the smaller steps.

    The cells with the largest steps are left out, so that a defect on a plain surface does not decide.
    """
    fine, coarse = (_cell_means(np.abs(x) + np.abs(y)).ravel() / 2 for x, y in (near, far))
    plain = np.argsort(coarse, kind="stable")[:_PLAIN_CELLS]
    return float((fine[plain].mean() + _SMALLEST_STEP) / (coarse[plain].mean() + _SMALLEST_STEP))


def _cell_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means of ``(FRAME_CELLS, FRAME_CELLS)`` cells of a plane, without the rows and columns left over."""
    side = min(values.shape) // FRAME_CELLS
    used = values[: side * FRAME_CELLS, : side * FRAME_CELLS]
    of_rows = used.reshape(FRAME_CELLS, side, -1).sum(axis=1, dtype=np.float64)
    return np.asarray(of_rows.reshape(FRAME_CELLS, FRAME_CELLS, side).sum(axis=2) / side**2)
