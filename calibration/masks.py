"""Lay the mask of an image over its anomaly map."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.geometry import placement
from flowedge.manifest import Preprocessing


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask by nearest neighbour. Pixel i takes pixel floor(i * from / to).

    Args:
        mask: ``(h, w)``.
        size: The height and width of the result in pixels.

    Returns:
        ``(H, W)``. A defect thinner than the reduction can lose pixels, or vanish.
    """
    resized = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return resized.astype(np.bool_)


def mask_on_map(
    mask: NDArray[np.bool_], preprocessing: Preprocessing, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Resize and crop a mask as its image was, by nearest neighbour, so that it fits the anomaly map.

    Args:
        mask: ``(h, w)``, at the image's size.
        preprocessing: The steps that made the network's input of the image.
        size: The map's height and width.

    Returns:
        ``(H, W)``. Pixels that a crop leaves out are in no metric. A crop that is larger than the image adds pixels
        without a defect.

    Raises:
        ImageError: The image is too elongated to be resized.
    """
    place = placement(preprocessing, (mask.shape[0], mask.shape[1]))
    resized = resize_mask(_cut_out(mask, place.framed, (-place.shift[0], -place.shift[1])), place.resized)
    window = _cut_out(resized, place.window, (place.top, place.left))
    return resize_mask(window, size)


def _cut_out(mask: NDArray[np.bool_], size: tuple[int, int], first: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the part of a mask of this size that begins at ``first``, with False outside of the mask."""
    rows, columns = (np.arange(start, start + count) for start, count in zip(first, size, strict=True))
    inside = [
        (index >= 0) & (index < whole) for index, whole in zip((rows, columns), mask.shape, strict=True)
    ]
    part = np.zeros(size, np.bool_)
    part[np.ix_(*inside)] = mask[np.ix_(rows[inside[0]], columns[inside[1]])]
    return part
