"""Find the pixels of a frame that are judged, and the cells of the network's maps that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, SettingsError
from flowedge.framing import Size
from flowedge.geometry import placement
from flowedge.manifest import Preprocessing
from flowedge.runtime.area.polygons import pixels_in_any
from flowedge.runtime.area.settings import AreaSettings, Polygon
from flowedge.runtime.frames.images import read_image

_LEAST_GREY = 128  # of a pixel in the mask's picture that is judged


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """The judged pixels of frames of one size.

    Attributes:
        inside: ``(H, W)``, True for each pixel of the frame that is judged.
    """

    inside: NDArray[np.bool_]

    @property
    def frame_size(self) -> Size:
        """``(height, width)`` of the frames in pixels."""
        height, width = self.inside.shape
        return height, width

    @property
    def share(self) -> float:
        """The share of the frame's pixels that is judged, 0..1."""
        return float(self.inside.mean())

    def only_inside(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a map over the frame with NaN for every pixel that is not judged."""
        return np.where(self.inside, values, np.float32(np.nan))

    def cells(self, preprocessing: Preprocessing, size: Size) -> NDArray[np.bool_]:
        """Find the cells of a map over the network's input that belong to the area.

        A cell belongs to it where it covers any part of a judged pixel. So each judged pixel that the network sees has
        its cell, and the area grows by less than one cell.

        Args:
            preprocessing: The steps from the frame to the network's input.
            size: ``(height, width)`` of the map in cells: that of the anomaly map, or of a level.
        """
        rows, columns = covered_pixels(preprocessing, self.frame_size, size)
        counts = cv2.integral(self.inside.astype(np.uint8)).astype(np.int64)
        down = counts[rows[:, 1]] - counts[rows[:, 0]]
        return np.asarray(down[:, columns[:, 1]] - down[:, columns[:, 0]] > 0)


def covered_pixels(
    preprocessing: Preprocessing, frame: Size, size: Size
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the pixels of a frame that each cell of a map over the network's input covers, in whole or in part.

    Args:
        preprocessing: The steps from the frame to the network's input.
        frame: The size of the frame.
        size: The size of the map in cells.

    Returns:
        For the rows ``(h, 2)`` and for the columns ``(w, 2)`` the first pixel and the one behind the last. The two are
        equal for a cell on padding.
    """
    place = placement(preprocessing, frame)
    rows, columns = (_covered(*axis, cells) for axis, cells in zip(place.axes, size, strict=True))
    return rows, columns


def _covered(
    frame: int, shift: int, framed: int, resized: int, first: int, count: int, cells: int
) -> NDArray[np.int64]:
    # Edge i lies at (first + i * count / cells) * framed / resized - shift. Whole numbers round no edge.
    edges = (first * cells + np.arange(cells + 1, dtype=np.int64) * count) * framed
    unit = cells * resized
    covered = np.stack([edges[:-1] // unit - shift, -(-edges[1:] // unit) - shift], axis=1)
    return np.clip(covered, 0, frame)


def area_of(settings: AreaSettings, frame: Size) -> Area:
    """Find the area of frames of one size.

    Args:
        settings: The polygons and the mask.
        frame: ``(height, width)`` of the frames in pixels.

    Raises:
        SettingsError: A corner lies outside of the frame, the mask cannot be read, or no pixel is left.
        ImageError: The frames have another size than those that the area was drawn on.
    """
    known = drawn_size(settings)
    if known is not None:
        check_drawn_size(known, frame)
    for key, polygons in (("inspect", settings.inspect), ("ignore", settings.ignore)):
        for number, polygon in enumerate(polygons, start=1):
            _check_corners(f"[area] {key}, polygon {number}", polygon, frame)
    inside = pixels_in_any(settings.inspect, frame) if settings.inspect else np.ones(frame, np.bool_)
    if settings.mask is not None:
        inside &= _read_mask(settings.mask)
    inside &= ~pixels_in_any(settings.ignore, frame)
    if not inside.any():
        raise SettingsError(
            "the area is empty: no pixel of the frame is left to be judged. Draw inspect larger, or ignore and the "
            "black of the mask smaller."
        )
    return Area(inside)


def drawn_size(settings: AreaSettings) -> Size | None:
    """Return the size of the frames that an area was drawn on, or None where it is the whole frame of any size.

    Raises:
        SettingsError: The size is missing, or differs from the mask's. The mask cannot be read.
    """
    size = settings.frame_size
    if settings.mask is not None:
        shape = _read_mask(settings.mask).shape
        if size is not None and size != shape:
            raise SettingsError(
                f"[area] frame_size is {_size(size)}, and the mask {settings.mask} has {_size(shape)} pixels (height x "
                "width). Both must be the size of the frames."
            )
        return shape
    if size is None and (settings.inspect or settings.ignore):
        raise SettingsError(
            "[area] frame_size is missing. Polygons are in pixels of a frame, so give the height and the width of the "
            "frames on which they were drawn: frame_size = [480, 640]."
        )
    return size


def check_drawn_size(drawn: Size, frame: Size) -> None:
    """Check the size of a frame against that of the frames that an area was drawn on.

    Raises:
        ImageError: The sizes differ.
    """
    if drawn != frame:
        raise ImageError(
            f"the frame is {_size(frame)} pixels, and the area was drawn on frames of {_size(drawn)} (height x width). "
            "Give frames of that size, or draw the area again."
        )


def _check_corners(name: str, polygon: Polygon, frame: Size) -> None:
    height, width = frame
    for x, y in polygon:
        if x > width or y > height:
            raise SettingsError(
                f"{name}: the corner [{x:g}, {y:g}] lies outside of a frame of {_size(frame)} pixels (height x width). "
                f"x may be 0 to {width}, y 0 to {height}."
            )


def _read_mask(file: Path) -> NDArray[np.bool_]:
    try:
        return np.asarray(read_image(file).max(axis=2) >= _LEAST_GREY)
    except ImageError as error:
        raise SettingsError(f"the mask of the area is no picture that can be read: {error}") from error


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
