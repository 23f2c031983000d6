"""Find the connected regions of detected pixels in a map of log NFA."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A 4-connected region of detected pixels, in pixels of the map.

    Attributes:
        log_nfa: The lowest log10 NFA in the region. A region further below 0 is surer to be anomalous.
        area_px: The number of pixels.
        top: The first row.
        left: The first column.
        height_px: The number of rows of the bounding box.
        width_px: The number of columns of the bounding box.
        centroid: The mean row and the mean column of the pixels.
    """

    log_nfa: float
    area_px: int
    top: int
    left: int
    height_px: int
    width_px: int
    centroid: tuple[float, float]


def detected_regions(log_nfa: NDArray[np.floating], limit: float = 0.0) -> tuple[Region, ...]:
    """Return the regions whose log NFA is below a limit, surest first.

    Args:
        log_nfa: ``(H, W)``, from `tree_log_nfa` or `block_log_nfa`. NaN, which stands outside of a crop, belongs to no
            region.
        limit: Log10 of the number of false alarms that are expected per image.

    Examples:
        >>> import numpy as np
        >>> [region.area_px for region in detected_regions(np.array([[-2.0, 1.0], [1.0, -3.0]]))]
        [1, 1]
    """
    detected = log_nfa < limit
    count, labels, boxes, centres = cv2.connectedComponentsWithStats(
        detected.astype(np.uint8), connectivity=4
    )
    # OpenCV's label 0 is the background, so regions are counted from 1.
    lowest = np.full(count, np.inf)
    np.minimum.at(lowest, labels[detected].astype(np.intp), log_nfa[detected])
    regions = [
        Region(
            log_nfa=float(lowest[label]),
            area_px=int(boxes[label, cv2.CC_STAT_AREA]),
            top=int(boxes[label, cv2.CC_STAT_TOP]),
            left=int(boxes[label, cv2.CC_STAT_LEFT]),
            height_px=int(boxes[label, cv2.CC_STAT_HEIGHT]),
            width_px=int(boxes[label, cv2.CC_STAT_WIDTH]),
            centroid=(float(centres[label, 1]), float(centres[label, 0])),
        )
        for label in range(1, count)
    ]
    return tuple(sorted(regions, key=lambda region: region.log_nfa))
