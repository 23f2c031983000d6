"""Measure regions of a frame: the scale of its pixels, and the length of a region."""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import cv2
import msgspec
import numpy as np

from flowedge.runtime.contours import Contour
from flowedge.runtime.settings import Settings

_LONGEST_SIDE: Final = 100_000
_SHORTEST_PX: Final = 2.0

Pixel: TypeAlias = Annotated[float, msgspec.Meta(ge=-_LONGEST_SIDE, le=_LONGEST_SIDE)]
Millimetres: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class ScaleSettings(Settings, frozen=True, kw_only=True):
    """The table ``[decision.scale]``: the size of a pixel on the part, as a number or by two points.

    One number holds for the whole frame. The camera must therefore look straight at a flat part.

    Attributes:
        mm_per_px: The side of a pixel in mm.
        from_px: The column and the row of a first point in the frame, such as the end of a ruler.
        to_px: The column and the row of a second point, as far away from the first as the frame allows.
        distance_mm: The distance of the two points on the part, in mm.
    """

    mm_per_px: Annotated[float, msgspec.Meta(gt=0, le=1000)] | None = None
    from_px: tuple[Pixel, Pixel] | None = None
    to_px: tuple[Pixel, Pixel] | None = None
    distance_mm: Millimetres | None = None

    def __post_init__(self) -> None:
        """Check that the scale is given in one way.

        Raises:
            ValueError: The scale is given in no way or in two, or the points are too near to each other.
        """
        points = (self.from_px, self.to_px, self.distance_mm)
        if (self.mm_per_px is None) == (points == (None, None, None)):
            raise ValueError("Give mm_per_px, or from_px, to_px and distance_mm, and not both")
        if self.mm_per_px is None and None in points:
            raise ValueError("A scale by two points needs from_px, to_px and distance_mm")
        if self.from_px and self.to_px and math.dist(self.from_px, self.to_px) < _SHORTEST_PX:
            raise ValueError(f"The points from_px and to_px must be at least {_SHORTEST_PX:g} pixels apart")

    @property
    def value(self) -> float:
        """The side of a pixel in mm."""
        if self.mm_per_px is not None:
            return self.mm_per_px
        assert self.from_px is not None, "checked when it was read"
        assert self.to_px is not None, "checked when it was read"
        assert self.distance_mm is not None, "checked when it was read"
        return self.distance_mm / math.dist(self.from_px, self.to_px)


def length_of(contour: Contour) -> float:
    """Return the length of a region in pixels: its maximum Feret diameter.

    The maximum Feret diameter is the largest distance between two points of the border, as a caliper measures it at the
    best angle. The way in which the part lies in the picture does not change the length. The longer side of the
    smallest rectangle around the region would be shorter for a region that lies in the rectangle's diagonal, and would
    let longer scratches pass. For a bent scratch the diameter is the distance of the ends, which is shorter than the
    way along it.

    The points of the border are the midpoints of the edges of its pixels, so a row of n pixels has the length n. The
    regionprops of scikit-image use the same points.

    Args:
        contour: The outer border of the region, see `flowedge.runtime.regions.Region.contour`.

    Examples:
        >>> from flowedge.runtime.station.measuring import length_of
        >>> length_of(((0, 0), (3, 0), (3, 1), (0, 1)))
        3.0
    """
    corners = np.array(contour, np.float32)
    following = np.roll(corners, -1, axis=0)
    half = np.sign(following - corners) / 2
    # The outermost midpoints of a straight stretch of the border are half a pixel from its corners. The others lie
    # between these two, so none of them is farther from anything.
    hull = cv2.convexHull(np.concatenate([corners + half, following - half]))[:, 0]
    away = hull[:, None] - hull[None]
    return float(np.sqrt(np.max(np.sum(away.astype(np.float64) ** 2, axis=2))))
