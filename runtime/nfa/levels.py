"""What both forms of the test share: the checks at the border and the resampling of a level to the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError

Compat: TypeAlias = Literal["corrected", "upstream"]

# The second coefficient of the cubic kernel, as PyTorch and OpenCV have it.
_CUBIC_A = -0.75


class NotInspectedError(FlowEdgeError):
    """A level holds NaN or infinity: nothing can be said of this image, least of all that it is normal."""


def check_levels(levels: Sequence[NDArray[Any]], channels: Sequence[int], compat: str) -> None:
    """Refuse what neither form of the test can answer.

    Args:
        levels: Per level, ``(h, w)`` energies or counts.
        channels: Per level, the number of channels of the latent.
        compat: ``"corrected"`` or ``"upstream"``.

    Raises:
        ValueError: No level, an empty or non-2-D level, as many channels as there are not levels, fewer than
            one channel, a negative energy or count, an unknown ``compat``.
        NotInspectedError: A value is NaN or infinite.
    """
    if compat not in get_args(Compat):
        raise ValueError(f"compat must be one of {', '.join(get_args(Compat))}, got {compat!r}")
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
                "input image; if it is sound, run the bundle's fp32 graph."
            )
        if level.min() < 0:
            raise ValueError(f"level {index} must not be negative, got {level.min()}")


def bilinear(level: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Resample with half-pixel centres, not antialiased: PyTorch's bilinear with ``align_corners=False``.

    Args:
        level: ``(h, w)`` float64.
        size: Height and width of the result in pixels.

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
    """Resample with aligned corners, not antialiased: PyTorch's bicubic with ``align_corners=True``.

    Args:
        level: ``(h, w)`` float64. A value that is not finite spreads as far as the kernel reaches.
        size: Height and width of the result in pixels.

    Returns:
        ``(H, W)`` float64.

    Raises:
        ValueError: A side of ``size`` is below one pixel.
    """
    _check_size(size)
    rows, row_weights = _cubic_taps(level.shape[0], size[0])
    columns, column_weights = _cubic_taps(level.shape[1], size[1])
    # Sums of four slices, not a matrix product: there every infinity would meet a weight of 0 in every row.
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
    """Where each target position reads and with which weight, both ``(4, target)``."""
    position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    first = position.astype(np.intp)
    fraction = position - first
    near, far = np.stack([fraction, 1 - fraction]), np.stack([1 + fraction, 2 - fraction])
    near = ((_CUBIC_A + 2) * near - (_CUBIC_A + 3)) * near * near + 1
    far = _CUBIC_A * (((far - 5) * far + 8) * far - 4)
    at = np.clip(first + np.arange(-1, 3)[:, None], 0, source - 1)
    return at, np.stack([far[0], near[0], near[1], far[1]])
