"""Find the pixels of a frame whose centres lie inside of polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowedge.framing import Size


def pixels_in_polygon(polygon: Sequence[tuple[float, float]], frame: Size) -> NDArray[np.bool_]:
    """Return the pixels whose centres lie inside of a polygon, by the even-odd rule.

    A centre exactly on a left or upper edge is inside, and on a right or lower edge outside. So two polygons with a
    common edge share no pixel and leave none out.

    Args:
        polygon: The corners ``(x, y)`` in pixels of the frame. Pixel (row r, column c) has its centre at (c + 1/2,
            r + 1/2).
        frame: ``(height, width)`` of the frame.

    Returns:
        ``(height, width)``, True for the pixels inside.

    Examples:
        >>> pixels_in_polygon([(0, 0), (3, 0), (0, 3)], (3, 4)).astype(int).tolist()
        [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    """
    height, width = frame
    corners = np.asarray(polygon, np.float64)
    toggles = np.zeros((height, width + 1), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        top, bottom = sorted((y0, y1))
        # Rows with top <= r + 1/2 < bottom cross the edge.
        first, end = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (top, bottom))
        if first >= end:
            continue
        rows = np.arange(first, end)
        crossing = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        # From the first column whose centre is not left of the crossing on, inside and outside change places.
        columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.intp)
        toggles[rows, columns] ^= True
    return np.asarray(np.logical_xor.accumulate(toggles, axis=1)[:, :width])


def pixels_in_any(polygons: Sequence[Sequence[tuple[float, float]]], frame: Size) -> NDArray[np.bool_]:
    """Return the pixels whose centres lie inside of at least one polygon, ``(height, width)``."""
    inside = np.zeros(frame, np.bool_)
    for polygon in polygons:
        inside |= pixels_in_polygon(polygon, frame)
    return inside
