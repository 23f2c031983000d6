"""Name the plain statistics of a camera's frame that a bundle may hold ranges of.

``mean`` and ``contrast`` (the standard deviation) are in grey levels of 0..255, of one channel, or of the grey picture
in one cell. ``cell 1-3`` is the right cell of the top row. ``detail`` is the root mean square step between neighbouring
pixels of the reduced grey picture, in grey levels. ``sharpness`` is the mean step between neighbours over the mean step
between pixels four apart, in the plainer cells. ``dark share`` and ``bright share`` are the shares of pixels within
four grey levels of black and of white. ``colour`` is the mean difference between the largest and the smallest channel
of a pixel, in grey levels.
"""

from __future__ import annotations

from typing import Final

FRAME_CELLS: Final = 3
"""Rows and columns of the coarse cells."""

_CELLS: Final = tuple(
    f"cell {row}-{column}" for row in range(1, FRAME_CELLS + 1) for column in range(1, FRAME_CELLS + 1)
)
FRAME_QUANTITIES: Final = (
    *(f"{channel} mean" for channel in ("red", "green", "blue")),
    *(f"{channel} contrast" for channel in ("red", "green", "blue")),
    "detail",
    "sharpness",
    "dark share",
    "bright share",
    "colour",
    *(f"{cell} mean" for cell in _CELLS),
    *(f"{cell} contrast" for cell in _CELLS),
)
"""The names, in the order of `flowedge.runtime.frames.frame_check.frame_statistics`."""

LARGEST_QUANTITY: Final = 255.0
"""No quantity is below 0 or above this."""

DEFAULT_FRAME_RATE: Final = 0.001
"""The expected share of good frames outside of the fitted ranges, over all quantities together."""
