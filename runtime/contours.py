"""Trace the outer borders of regions along the edges of their pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Contour: TypeAlias = tuple[tuple[int, int], ...]
"""The corners of a polygon, ``(column, row)`` each, where the pixel in row r and column c covers r to r + 1 and
c to c + 1. The last corner joins the first."""


def outer_contours(
    detected: NDArray[np.bool_], first_pixels: NDArray[np.integer], *, origin: tuple[int, int] = (0, 0)
) -> list[Contour]:
    """Trace the outer border of each region, clockwise from the upper left corner of the region's first pixel.

    The polygon covers the region and its holes, and no other pixel. So one pixel gives a square of side 1. A corner
    stands only where the border turns.

    Args:
        detected: ``(H, W)``, True inside of the regions. Pixels that touch only at a corner are not neighbours.
        first_pixels: For each region the flat index in ``detected`` of its first pixel, row by row.
        origin: The row and the column of the first pixel of ``detected`` in the frame.

    Examples:
        >>> import numpy as np
        >>> outer_contours(np.array([[False, True]]), np.array([1]))
        [((1, 0), (2, 0), (2, 1), (1, 1))]
    """
    width = detected.shape[1]
    # A border of pixels outside of every region gives each pixel four neighbours.
    inside = np.pad(detected, 1).ravel()
    stride = width + 2
    # An edge is a pixel and a side: 0 top, 1 right, 2 bottom, 3 left. Its number is four times the pixel plus the side.
    # Walking along an edge with the region on the right leads to the neighbour on the next side.
    neighbours = (-stride, 1, stride, -1)
    edges: list[NDArray[np.int64]] = []
    followers: list[NDArray[np.int64]] = []
    for side, outward in enumerate(neighbours):
        along = neighbours[(side + 1) % 4]
        here = np.flatnonzero(inside & ~np.roll(inside, -outward))
        ahead, beside = here + along, here + along + outward
        edges.append(4 * here + side)
        followers.append(
            np.where(
                ~inside[ahead],
                4 * here + (side + 1) % 4,  # 1. The border turns right, around the same pixel.
                np.where(
                    ~inside[beside],
                    4 * ahead + side,  # 2. The border goes straight on.
                    4 * beside + (side - 1) % 4,  # 3. The border turns left.
                ),
            )
        )
    numbers = np.concatenate(edges)
    order = np.argsort(numbers)
    numbers = numbers[order]
    following = np.searchsorted(numbers, np.concatenate(followers)[order]).tolist()
    rows, columns = np.divmod(np.asarray(first_pixels, np.int64), width)
    starts = np.searchsorted(numbers, 4 * ((rows + 1) * stride + columns + 1)).tolist()
    walked: list[int] = []
    ends: list[int] = []
    for start in starts:
        walked.append(start)
        edge = following[start]
        while edge != start:
            walked.append(edge)
            edge = following[edge]
        ends.append(len(walked))
    pixel, side_of = np.divmod(numbers[walked], 4)
    # Each walk begins with a top side and ends with a left one, so that its first corner is a turn as well.
    turns = side_of != np.roll(side_of, 1)
    row, column = np.divmod(pixel[turns], stride)
    side_of = side_of[turns]
    top, left = origin
    corner_columns = (left + column - 1 + ((side_of == 1) | (side_of == 2))).tolist()
    corner_rows = (top + row - 1 + (side_of >= 2)).tolist()
    corners = list(zip(corner_columns, corner_rows, strict=True))
    last = np.cumsum(turns)[np.array(ends, np.int64) - 1].tolist() if ends else []
    return [tuple(corners[begin:end]) for begin, end in zip([0, *last], last, strict=False)]
