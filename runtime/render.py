"""Draw anomaly maps and masks on frames, and write pictures.

Images are ``(H, W, 3)`` uint8 RGB, and masks are ``(H, W)`` uint8.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.files import write_whole_file

RED: Final = (255, 32, 32)


def heatmap(anomaly_map: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Colour a map, from dark blue at ``low`` and below to dark red at ``high`` and above.

    Args:
        anomaly_map: The map, ``(H, W)``. Where it is NaN, the colour is that of ``low``.
        low: The value of dark blue, in the map's unit.
        high: The value of dark red, in the map's unit.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    # In float64, whose range holds the difference of any two numbers of float32.
    share = np.clip((anomaly_map.astype(np.float64) - low) / (high - low), 0, 1)
    grey = np.rint(np.nan_to_num(share, nan=0.0) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB), np.uint8)


def overlay(
    frame: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    low: float,
    high: float,
    *,
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay a map's colours over its frame. Pixels that were not inspected (NaN) keep the frame's colours.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB. The frame is not modified.
        anomaly_map: ``(H, W)``, of the frame's size.
        low: The value of dark blue, in the map's unit.
        high: The value of dark red, in the map's unit.
        opacity: The colours' share, 0 to 1.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: The sizes differ, ``low`` is not below ``high``, or ``opacity`` is outside of 0 to 1.
    """
    _check_same_size(frame, anomaly_map)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    blended = cv2.addWeighted(frame, 1 - opacity, heatmap(anomaly_map, low, high), opacity, 0)
    return np.where(np.isnan(anomaly_map)[..., None], frame, np.asarray(blended, np.uint8))


def outline(
    frame: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    colour: tuple[int, int, int] = RED,
    *,
    width_px: int = 2,
) -> NDArray[np.uint8]:
    """Draw the borders of a mask's regions, holes included.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB. The frame is not modified.
        mask: ``(H, W)`` uint8, not zero inside of a region.
        colour: RGB.
        width_px: The line's width in pixels.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: The sizes differ.
    """
    _check_same_size(frame, mask)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(frame).copy()
    cv2.drawContours(drawn, contours, -1, colour, width_px)
    return drawn


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture so that a reader sees all of it or nothing.

    Args:
        path: The file, whose folder must exist. A file that is there is replaced.
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.

    Raises:
        ImageError: The file cannot be written.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    encoded, data = cv2.imencode(".png", bgr)
    assert encoded, f"OpenCV cannot encode {image.shape} {image.dtype}"
    try:
        write_whole_file(path, data.tobytes())
    except OSError as error:
        raise ImageError(
            f"{path} cannot be written: {error.strerror}. Check that its folder exists, is writable and has space."
        ) from error


def data_address(image: NDArray[np.uint8], *, jpeg_quality: int | None = None) -> str:
    """Encode a picture as a ``data:`` address, so that a page holds it.

    Args:
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey.
        jpeg_quality: The quality of a JPEG, 0 to 100. Without it the picture is a PNG, which loses nothing.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    kind, options = (
        ("png", []) if jpeg_quality is None else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    )
    encoded, data = cv2.imencode(f".{kind}", bgr, options)
    assert encoded, f"OpenCV cannot encode {image.shape} {image.dtype}"
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def _check_same_size(frame: NDArray[np.uint8], layer: NDArray[np.generic]) -> None:
    if frame.shape[:2] != layer.shape:
        raise ValueError(f"the map or mask must have the frame's size {frame.shape[:2]}, got {layer.shape}")
