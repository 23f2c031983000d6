"""The detected regions of a map of log NFA, for those who act on regions rather than on pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A 4-connected region of detected pixels, in pixels of the map.

    Attributes:
        log_nfa: The lowest log10 NFA in it; the further below 0, the surer.
        area_px: How many pixels.
        top: First row.
        left: First column.
        height_px: Rows of the bounding box.
        width_px: Columns of the bounding box.
        centroid: Mean row and mean column of its pixels.
    """

    log_nfa: float
    area_px: int
    top: int
    left: int
    height_px: int
    width_px: int
    centroid: tuple[float, float]


def detected_regions(log_nfa: NDArray[np.floating], limit: float = 0.0) -> tuple[Region, ...]:
    """The regions of a map whose log NFA is below a limit, surest first.

    Args:
        log_nfa: ``(H, W)``, from ``tree_log_nfa`` or ``block_log_nfa``. A NaN (outside of a crop, or made by
            the upstream form of the blocks) belongs to no region.
        limit: Log10 of the false alarms that are expected per image.
    """
    detected = log_nfa < limit
    count, labels, boxes, centres = cv2.connectedComponentsWithStats(
        detected.astype(np.uint8), connectivity=4
    )
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
