"""Name and compute the quantities that are watched for drift: the score, and plain statistics of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.frame_quantities import FRAME_CELLS, FRAME_QUANTITIES

SCORE: Final = "score"
_CELLS: Final = tuple(
    f"{row}-{column}" for row in range(1, FRAME_CELLS + 1) for column in range(1, FRAME_CELLS + 1)
)
PICTURE: Final = ("brightness", "contrast", "sharpness", *(f"layout {cell}" for cell in _CELLS))
"""The quantities of a picture. ``brightness`` and ``contrast`` are the mean and the standard deviation of the grey
levels of the three channels, in grey levels. ``sharpness`` is the quantity of that name of
`flowedge.frame_quantities`. ``layout 1-3`` is the mean grey level of the right ninth of the top row over the brightness
of the picture, so a moved camera changes it and a lamp that fades evenly does not."""

QUANTITIES: Final = (SCORE, *PICTURE)

_SOURCES: Final = (
    *(tuple(f"{channel} {kind}" for channel in ("red", "green", "blue")) for kind in ("mean", "contrast")),
    ("sharpness",),
    *((f"cell {cell} mean",) for cell in _CELLS),
)
"""The statistics of a frame whose mean each quantity of a picture is."""

_MEANS: Final = np.array(
    [[name in sources and 1 / len(sources) for sources in _SOURCES] for name in FRAME_QUANTITIES], np.float64
)


class _Floor(NamedTuple):
    """Gives the least spread that a quantity is taken to have, so that a steady picture does not raise alarms."""

    fixed: float
    share: float

    def at(self, median: float) -> float:
        return self.fixed + self.share * abs(median)


_FLOORS: Final[Mapping[str, _Floor]] = {
    SCORE: _Floor(0.0, 1e-3),
    "brightness": _Floor(1.0, 0.01),
    "contrast": _Floor(0.5, 0.01),
    "sharpness": _Floor(0.0, 0.02),
    "layout": _Floor(0.01, 0.01),
}


def picture_values(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the quantities of pictures from their statistics.

    Args:
        statistics: ``(..., Q)`` float64, as `flowedge.runtime.frames.frame_check.frame_statistics` gives them.

    Returns:
        ``(..., P)`` float64, a value for each name of ``PICTURE``, in that order.
    """
    values = np.asarray(statistics @ _MEANS)
    values[..., len(PICTURE) - len(_CELLS) :] /= np.maximum(values[..., :1], 1.0)
    return values


def spread_of(name: str, values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the spread of a quantity: the standard deviation by the median absolute deviation, or a floor of it."""
    median, deviation = median_and_deviation(values)
    return max(deviation, _FLOORS[name.partition(" ")[0]].at(median))


def median_and_deviation(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return the median, and the standard deviation as the median absolute deviation estimates it.

    The factor 1.4826 makes the two deviations equal for values of a normal distribution.
    """
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(np.asarray(values) - median)))


def words_for(name: str) -> str:
    """Describe a quantity for a person, as the beginning of a sentence without an article."""
    if not name.startswith("layout "):
        return name
    row, _, column = name.removeprefix("layout ").partition("-")
    place = f"{('top', 'middle', 'bottom')[int(row) - 1]} {('left', 'centre', 'right')[int(column) - 1]}"
    return f"brightness of the {place} ninth relative to the picture"
