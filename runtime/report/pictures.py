"""Shrink and encode pictures for pages, and keep those that matter most where all would be too many."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.colours import PaintedValues, heatmap, painted_values
from flowedge.runtime.render import data_address, draw
from flowedge.runtime.report.markup import Markup, element
from flowedge.runtime.result import Result

LONGEST_PX: Final = 384
"""The longer side of a picture in a page."""

_QUALITY: Final = 82
_Kept = TypeVar("_Kept")


def shrunk(picture: NDArray[np.uint8], longest: int = LONGEST_PX) -> NDArray[np.uint8]:
    """Return a picture whose longer side has at most so many pixels."""
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def jpeg_address(picture: NDArray[np.uint8]) -> str:
    """Encode a picture as the ``data:`` address of a JPEG."""
    return data_address(picture, jpeg_quality=_QUALITY)


def mask_address(mask: NDArray[np.bool_]) -> str:
    """Encode a mask as a small black and white PNG. A region of one pixel stays visible."""
    covered = shrunk(mask.astype(np.uint8) * np.uint8(255)) > 0
    return data_address(covered.astype(np.uint8) * np.uint8(255))


def pictures_of(frame: NDArray[Any], result: Result | None) -> tuple[str | None, str | None, str | None]:
    """Encode a frame, the findings in it, and its whole anomaly map. Each is None where there is nothing to show.

    All are drawn at the size of the page's pictures, so a frame of any size costs little. A frame without findings
    has no second picture.

    Args:
        frame: The frame as its source gave it, for a frame without a result.
        result: The result of the frame, or None where it could not be inspected.
    """
    seen = frame if result is None else result.frame
    if seen.size == 0 or seen.dtype != np.uint8 or seen.ndim not in (2, 3):
        return None, None, None
    small = shrunk(seen)
    shown = jpeg_address(small)
    if result is None or not np.isfinite(result.network_map).all():
        return shown, None, None
    at_small = dataclasses.replace(result, frame=small)
    findings = None if result.verdict == "ok" else jpeg_address(draw(at_small, captions=False))
    return shown, findings, jpeg_address(whole_map(painted_values(at_small)))


def whole_map(painted: PaintedValues) -> NDArray[np.uint8]:
    """Draw a whole map, in grey up to the threshold and in the colours of the scale above it.

    Returns:
        ``(H, W, 3)`` uint8 RGB. A map without a threshold has colours everywhere.
    """
    coloured = heatmap(painted.values, painted.low, painted.high)
    if painted.threshold is None:
        return coloured
    # The grey has the lightness of the colour, so the order of the values can be seen below the threshold as well.
    grey = np.asarray(cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY), np.uint8)
    return np.where((painted.values > painted.threshold)[..., None], coloured, grey[..., None])


def picture_button(name: str, pictures: Sequence[tuple[str, str]], caption: object) -> Markup:
    """Return pictures side by side with a caption, which open large on a click. The figure belongs into `gallery`.

    Args:
        name: The name of what is shown, for readers who cannot see it.
        pictures: The name and the ``data:`` address of each.
        caption: Text or markup below.
    """
    images = (element("img", alt=alt, src=address) for alt, address in pictures)
    button = element("button", *images, type="button", class_="zoom", aria_label=f"Enlarge {name}")
    return element("figure", button, element("figcaption", caption))


def gallery(figures: Sequence[Markup]) -> Markup:
    """Return a grid of figures, as many side by side as fit."""
    return element("div", *figures, class_="gallery")


class MostUrgent(Generic[_Kept]):
    """A store of a fixed size that keeps what is most urgent, and among equals what came first."""

    def __init__(self, size: int) -> None:
        """Choose the largest number of things to keep."""
        self._size = size
        self._heap: list[tuple[tuple[float, ...], int, _Kept]] = []
        self._seen = 0

    def would_keep(self, urgency: tuple[float, ...]) -> bool:
        """Return True where a thing of this urgency would be kept now. Larger tuples are more urgent."""
        return len(self._heap) < self._size or urgency > self._heap[0][0]

    def add(self, urgency: tuple[float, ...], thing: _Kept) -> None:
        """Keep a thing, or drop whatever is now the least urgent."""
        self._seen += 1
        entry = (urgency, -self._seen, thing)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif urgency > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def kept(self) -> list[_Kept]:
        """Return what is kept, the most urgent first."""
        return [thing for _, _, thing in sorted(self._heap, key=lambda one: one[:2], reverse=True)]

    @property
    def is_all(self) -> bool:
        """True where nothing was dropped."""
        return self._seen <= self._size
