"""Find the connected regions of anomalous pixels in a frame, and describe each."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.contours import Contour, outer_contours


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region of anomalous pixels that touch at their sides (4 neighbours), in pixels of the frame.

    Attributes:
        area_px: The number of pixels.
        top: The first row.
        left: The first column.
        height_px: The number of rows of the bounding box.
        width_px: The number of columns of the bounding box.
        centroid: The mean row and the mean column of the pixels.
        peak: The largest value of the anomaly map in the region.
        peak_at: The row and the column of the first pixel with the value ``peak``.
        contour: The corners ``(column, row)`` of a polygon along the edges of the pixels, clockwise. Pixel (row r,
            column c) covers r to r + 1 and c to c + 1. The polygon covers the region and its holes, and the last corner
            joins the first.
        log_nfa: The lowest log10 number of false alarms in the region. A region further below 0 is surer to be
            anomalous. The value is None where thresholds of the map decide.
    """

    area_px: int
    top: int
    left: int
    height_px: int
    width_px: int
    centroid: tuple[float, float]
    peak: float
    peak_at: tuple[int, int]
    contour: Contour = field(repr=False)
    log_nfa: float | None = None


def find_regions(
    detected: NDArray[np.bool_],
    anomaly_map: NDArray[np.floating],
    *,
    log_nfa: NDArray[np.floating] | None = None,
    min_area_px: int = 1,
) -> tuple[Region, ...]:
    """Return the 4-connected regions of detected pixels, surest first.

    The surest region has the lowest log NFA, or the highest peak where there is no log NFA.

    Args:
        detected: ``(H, W)``, True for the pixels of the regions.
        anomaly_map: ``(H, W)``. Larger is more anomalous. The values of detected pixels are numbers, not NaN.
        log_nfa: ``(H, W)``, log10 of each pixel's number of false alarms, if this number decides.
        min_area_px: The number of pixels below which a region is left out.

    Examples:
        >>> import numpy as np
        >>> anomaly_map = np.array([[5.0, 1.0], [1.0, 9.0]])
        >>> [region.peak for region in find_regions(anomaly_map > 3, anomaly_map)]
        [9.0, 5.0]
    """
    # The regions are few pixels of a large frame, so the steps below see the rectangle around all of them alone.
    left_of_all, top_of_all, width, height = cv2.boundingRect(detected.view(np.uint8))
    if not width:
        return ()
    around = slice(top_of_all, top_of_all + height), slice(left_of_all, left_of_all + width)
    detected, anomaly_map = detected[around], anomaly_map[around]
    count, labels, boxes, centres = cv2.connectedComponentsWithStats(detected.view(np.uint8), connectivity=4)
    boxes[:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]] += (left_of_all, top_of_all)
    pixels = np.flatnonzero(detected)
    label_of = labels.ravel()[pixels].astype(np.intp)
    values = anomaly_map.ravel()[pixels]
    # One type on both sides is several times as fast for ufunc.at.
    peaks = np.full(count, -np.inf, values.dtype)
    np.maximum.at(peaks, label_of, values)
    at_peak = values == peaks[label_of]
    peak_pixels = _first_of_each(count, label_of[at_peak], pixels[at_peak])
    first_pixels = _first_of_each(count, label_of, pixels)
    lowest = None
    if log_nfa is not None:
        lowest = np.full(count, np.inf, log_nfa.dtype)
        np.minimum.at(lowest, label_of, log_nfa[around].ravel()[pixels])
    # OpenCV's label 0 is the background, so regions are counted from 1.
    kept = 1 + np.flatnonzero(boxes[1:, cv2.CC_STAT_AREA] >= min_area_px)
    kept = kept[np.argsort(-peaks[kept] if lowest is None else lowest[kept], kind="stable")]
    contours = outer_contours(detected, first_pixels[kept], origin=(top_of_all, left_of_all))
    peak_rows, peak_columns = np.divmod(peak_pixels[kept], width)
    return tuple(
        Region(
            area_px=area,
            top=top,
            left=left,
            height_px=height_px,
            width_px=width_px,
            centroid=(row, column),
            peak=peak,
            peak_at=peak_at,
            contour=contour,
            log_nfa=surest,
        )
        for (left, top, width_px, height_px, area), (column, row), peak, peak_at, contour, surest in zip(
            boxes[kept].tolist(),
            (centres[kept] + (left_of_all, top_of_all)).tolist(),
            peaks[kept].tolist(),
            zip((peak_rows + top_of_all).tolist(), (peak_columns + left_of_all).tolist(), strict=True),
            contours,
            [None] * len(kept) if lowest is None else lowest[kept].tolist(),
            strict=True,
        )
    )


def _first_of_each(count: int, labels: NDArray[np.intp], pixels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the first of the pixels with each label, 0 for a label without pixels."""
    first = np.zeros(count, np.intp)
    # NumPy keeps the last of several values for one place.
    first[labels[::-1]] = pixels[::-1]
    return first
