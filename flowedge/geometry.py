"""Follow each pixel from a frame to the network's input, and an anomaly map back to the frame.

A centre crop is a choice of rows, so it costs nothing. The part of a frame outside a crop was not inspected. There, a
map that is laid back over the frame is NaN, which no comparison calls anomalous or normal by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.framing import Size, centred, framing
from flowedge.manifest import Preprocessing, ResizeMethod
from flowedge.manifest_bounds import MAX_SIDE
from flowedge.resampling import (
    Arithmetic,
    BandedMatrix,
    Kernel,
    Taps,
    antialiased_taps,
    bilinear_taps,
    dense_matrix,
    linear_taps,
)

CV2_FRACTION_BITS: Final = 11
"""OpenCV's weights for uint8 images are integers in units of ``2 ** -11``."""

GREY_WEIGHTS: Final = np.array([0.2989, 0.587, 0.114], np.float32)
"""The shares of red, green and blue in torchvision's grey, which do not quite sum to 1."""

_KERNELS: Final[dict[ResizeMethod, Kernel]] = {
    "float_bilinear": "bilinear",
    "float_bicubic": "bicubic",
    "pil_bilinear": "bilinear",
    "pil_lanczos": "lanczos",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the network's input lies in a frame: its borders are changed, it is resized, a window of that is the input.

    Attributes:
        frame: Size of the frame.
        shift: Where the frame's first pixel lies after the change of its borders, down and right.
        framed: Size of the frame with its borders changed.
        resized: Size of all of that after the resize.
        top: First row of the window in the resized frame; negative when the window is larger than it.
        left: First column, likewise.
        window: Size of the network's input: of the crop, or ``resized`` without one.
    """

    frame: Size
    shift: Size
    framed: Size
    resized: Size
    top: int
    left: int
    window: Size


def placement(preprocessing: Preprocessing, frame: Size) -> Placement:
    """Follow torchvision's ``Resize`` and ``CenterCrop`` for a frame of this size.

    With ``keep_aspect`` the shorter side becomes ``resize[0]`` and the longer one is rounded down. Around a
    crop that is larger than the resized frame there is black.

    Raises:
        ImageError: The frame is empty, or so elongated that the resized frame would exceed `MAX_SIDE`.
    """
    height, width = frame
    if height < 1 or width < 1:
        raise ImageError(f"the frame is {height}x{width} pixels; it needs at least 1x1. Check its source.")
    changed = framing(preprocessing.frame_steps, frame)
    framed = changed.size
    resized: Size = preprocessing.resize
    if preprocessing.keep_aspect:
        shorter = preprocessing.resize[0]
        longer = int(shorter * max(framed) / min(framed))
        resized = (shorter, longer) if framed[0] <= framed[1] else (longer, shorter)
    if max(resized) > MAX_SIDE:
        raise ImageError(
            f"a frame of {height}x{width} pixels, its shorter side resized to {preprocessing.resize[0]}, would "
            f"be {resized[0]}x{resized[1]}; the longest side may be {MAX_SIDE}. Cut the frame into pieces."
        )
    window: Size = preprocessing.crop or resized
    top, left = (centred(whole, part) for whole, part in zip(resized, window, strict=True))
    return Placement(
        frame=frame,
        shift=changed.shift,
        framed=framed,
        resized=resized,
        top=top,
        left=left,
        window=window,
    )


def input_matrices(
    preprocessing: Preprocessing, frame: Size
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights that make the network's input of a frame whose borders are changed: resize and crop at once.

    ``rows @ channel @ columns.T`` is the resized and cropped channel in the frame's unit, before the rounding
    to uint8 that all methods but the ``float_`` ones do, and before mean and std. For ``cv2_bilinear`` it is
    within one grey level of OpenCV, which rounds its weights to 11 bits; `cv2_taps` are exact.

    Returns:
        ``rows`` ``[window height, framed height]`` and ``columns`` ``[window width, framed width]``. A row of
        zeros is padding.

    Raises:
        ImageError: As `placement`.
    """
    place = placement(preprocessing, frame)
    rows, columns = (
        dense_matrix(
            _resize_taps(preprocessing.method, resized, length).window(first, count), length, np.float64
        )
        for resized, length, first, count in zip(
            place.resized, place.framed, (place.top, place.left), place.window, strict=True
        )
    )
    return rows, columns


@dataclass(frozen=True, slots=True)
class TwoTaps:
    """OpenCV's integer weights along one axis: each output takes two inputs.

    Attributes:
        first: ``[outputs]`` int64, an input.
        second: ``[outputs]`` int64, the next, or the first again at an edge.
        first_weight: ``[outputs]`` int32, in units of ``2 ** -CV2_FRACTION_BITS``; zero for padding.
        second_weight: ``[outputs]`` int32, likewise.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: NDArray[np.int32]
    second_weight: NDArray[np.int32]


def cv2_taps(preprocessing: Preprocessing, frame: Size) -> tuple[TwoTaps, TwoTaps]:
    """What OpenCV's INTER_LINEAR takes of a frame of uint8, with the crop; rows and columns.

    Along x, its integers are ``s = first * weight + second * weight``; then along y, with ``t = s >> 4``, the
    result is ``((t_first * weight >> 16) + (t_second * weight >> 16) + 2) >> 2``. Along x a position is held
    within the inputs' centres, along y only the rows are: the fraction stays, which is another rounding.

    Raises:
        ImageError: As `placement`.
    """
    place = placement(preprocessing, frame)
    rows, columns = (
        _two_taps(resized, length, first, count, is_held=is_held)
        for resized, length, first, count, is_held in zip(
            place.resized,
            place.framed,
            (place.top, place.left),
            place.window,
            (False, True),
            strict=True,
        )
    )
    return rows, columns


def map_to_frame(
    anomaly_map: NDArray[np.float32], preprocessing: Preprocessing, frame: Size
) -> NDArray[np.float32]:
    """Lay an anomaly map over its frame: bilinear between pixel centres, held at the edges.

    Args:
        anomaly_map: ``[h, w]``; it covers the network's input, at any resolution.
        preprocessing: How the frame became that input.
        frame: Size of the frame.

    Returns:
        ``[H, W]`` in the map's unit; NaN outside of the crop, which was not inspected.

    Raises:
        ImageError: As `placement`.
    """
    height, width = anomaly_map.shape
    rows, columns = _frame_matrices(preprocessing, frame, (height, width))
    with np.errstate(invalid="ignore"):  # NaN is an answer here
        result: NDArray[np.float32] = rows @ (columns @ anomaly_map.T).T
    return result


def _resize_taps(method: ResizeMethod, outputs: int, inputs: int) -> Taps:
    if method == "cv2_bilinear":
        return bilinear_taps(outputs, inputs, align_corners=False)
    arithmetic: Arithmetic = "float32" if method.startswith("float_") else "float64"
    return antialiased_taps(outputs, inputs, _KERNELS[method], arithmetic)


def _two_taps(resized: int, length: int, start: int, count: int, *, is_held: bool) -> TwoTaps:
    position = ((np.arange(start, start + count) + 0.5) * (length / resized) - 0.5).astype(np.float32)
    if is_held:
        position = np.clip(position, 0, length - 1)
    first = np.floor(position)
    fraction = position - first
    exists = (np.arange(start, start + count) >= 0) & (np.arange(start, start + count) < resized)
    one = np.float32(1 << CV2_FRACTION_BITS)
    return TwoTaps(
        first=np.clip(first.astype(np.int64), 0, length - 1),
        second=np.clip(first.astype(np.int64) + 1, 0, length - 1),
        first_weight=np.asarray(np.rint((1 - fraction) * one) * exists, np.int32),
        second_weight=np.asarray(np.rint(fraction * one) * exists, np.int32),
    )


@lru_cache(maxsize=16)
def _frame_matrices(
    preprocessing: Preprocessing, frame: Size, map_size: Size
) -> tuple[BandedMatrix, BandedMatrix]:
    """The rows and columns of `map_to_frame`."""
    place = placement(preprocessing, frame)
    rows, columns = (
        BandedMatrix(_cover_matrix(*axis))
        for axis in zip(
            place.frame,
            place.shift,
            place.framed,
            place.resized,
            (place.top, place.left),
            place.window,
            map_size,
            strict=True,
        )
    )
    return rows, columns


def _cover_matrix(
    frame: int, shift: int, framed: int, resized: int, first: int, count: int, cells: int
) -> NDArray[np.float32]:
    """Along one axis: the frame's pixels from the map's cells, which cover ``count`` resized pixels."""
    position = np.arange(frame) + shift + 0.5
    inside = position * resized / framed - first
    taps = linear_taps(inside * cells / count - 0.5, cells)
    seen = (position > 0) & (position < framed) & (inside >= 0) & (inside <= count)
    return dense_matrix(Taps(taps.inputs, np.where(seen[:, None], taps.weights, np.nan)), cells, np.float32)
