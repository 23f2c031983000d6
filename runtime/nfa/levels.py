"""Check the levels that a test of the number of false alarms takes, and resample a level to the map's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError

# The free coefficient of the cubic convolution kernel. PyTorch and OpenCV have this value.
_CUBIC_A = -0.75


class NotInspectedError(FlowEdgeError):
    """A level holds NaN or infinity, so the image can be judged neither normal nor anomalous."""


def check_levels(levels: Sequence[NDArray[Any]], channels: Sequence[int]) -> None:
    """Refuse levels that no test of the number of false alarms can judge.

    Args:
        levels: Per level, ``(h, w)`` energies or counts.
        channels: Per level, the number of channels of the latent.

    Raises:
        ValueError: There is no level, or a level is empty, not 2-D or negative. The channel counts are not as many as
            the levels, or one is below 1.
        NotInspectedError: A value is NaN or infinite.
    """
    if not levels or len(levels) != len(channels):
        raise ValueError(f"need one channel count per level, got {len(channels)} for {len(levels)} levels")
    for index, (level, depth) in enumerate(zip(levels, channels, strict=True)):
        if level.ndim != 2 or level.size == 0:
            raise ValueError(f"level {index} must be (h, w) and not empty, got {level.shape}")
        if depth < 1:
            raise ValueError(f"level {index} must have at least one channel, got {depth}")
        bad = level.size - np.count_nonzero(np.isfinite(level))
        if bad:
            raise NotInspectedError(
                f"level {index} holds {bad} of {level.size} values that are NaN or infinite. Look at the "
                "input image. If it is sound, run the bundle's fp32 graph."
            )
        if level.min() < 0:
            raise ValueError(f"level {index} must not be negative, got {level.min()}")


def bilinear(level: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resample a level as PyTorch's bilinear interpolation with ``align_corners=False`` does, without antialiasing.

    Args:
        level: ``(h, w)`` float64.
        size: The height and width of the result in pixels.

    Returns:
        ``(H, W)`` float64.

    Raises:
        ValueError: A side of ``size`` is below one pixel.
    """
    _check_size(size)
    return cv2.resize(level, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).astype(
        np.float64, copy=False
    )


def bicubic(level: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resample a level as PyTorch's bicubic interpolation with ``align_corners=True`` does, without antialiasing.

    Args:
        level: ``(h, w)`` float64. A value that is not finite spreads as far as the kernel reaches.
        size: The height and width of the result in pixels.

    Returns:
        ``(H, W)`` float64.

    Raises:
        ValueError: A side of ``size`` is below one pixel.
    """
    _check_size(size)
    rows, row_weights = _cubic_taps(level.shape[0], size[0])
    columns, column_weights = _cubic_taps(level.shape[1], size[1])
    # Four slices are added, because in a matrix product every infinity would meet a weight of 0 in every row and become
    # NaN there. Rows are added in place, because a fresh map costs more than the arithmetic on it.
    wide = sum(level[:, at] * weight for at, weight in zip(columns, column_weights, strict=True))
    result, tap = np.zeros(size), np.empty(size)
    for at, weight in zip(rows, row_weights, strict=True):
        np.take(wide, at, axis=0, out=tap, mode="clip")
        tap *= weight[:, None]
        result += tap
    return result


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(f"size must be at least 1x1 pixels, got {size}")


def _cubic_taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the four source positions and the four weights of each target position, both ``(4, target)``."""
    position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    first = position.astype(np.intp)
    fraction = position - first
    # The cubic convolution kernel has one polynomial within a distance of 1 and another one from 1 to 2.
    near, far = np.stack([fraction, 1 - fraction]), np.stack([1 + fraction, 2 - fraction])
    near = ((_CUBIC_A + 2) * near - (_CUBIC_A + 3)) * near * near + 1
    far = _CUBIC_A * (((far - 5) * far + 8) * far - 4)
    # Beyond the border the kernel reads the border's own value again.
    at = np.clip(first + np.arange(-1, 3)[:, None], 0, source - 1)
    return at, np.stack([far[0], near[0], near[1], far[1]])
