"""Follow each pixel from a frame to the network's input, and an anomaly map back to the frame.

A centre crop is a choice of rows, so it costs nothing. The part of a frame outside a crop was not inspected. There, a
map that is laid back over the frame is NaN, which no comparison calls anomalous or normal by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

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


Axis: TypeAlias = tuple[int, int, int, int, int, int]
"""The numbers of a placement along one axis: frame, shift, framed, resized, the first of the window, and window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The place of the network's input in a frame. Borders are changed, the frame is resized, and a window is cut out.

    Attributes:
        frame: The size of the frame.
        shift: The place of the frame's first pixel after the change of its borders, down and right.
        framed: The size of the frame with changed borders.
        resized: The size of the changed frame after the resize.
        top: The first row of the window in the resized frame. The row is negative for a window that is
            taller than the resized frame.
        left: The first column of the window in the resized frame. The column is negative for a window that is
            wider than the resized frame.
        window: The size of the network's input, which is that of the crop, or ``resized`` where there is no crop.
    """

    frame: Size
    shift: Size
    framed: Size
    resized: Size
    top: int
    left: int
    window: Size

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The placement along the rows and along the columns."""
        first = (self.top, self.left)
        rows, columns = zip(
            self.frame, self.shift, self.framed, self.resized, first, self.window, strict=True
        )
        return rows, columns


def placement(preprocessing: Preprocessing, frame: Size) -> Placement:
    """Return the placement that torchvision's ``Resize`` and ``CenterCrop`` give a frame of this size.

    With ``keep_aspect`` the shorter side becomes ``resize[0]`` and the longer one is rounded down. Around a
    crop that is larger than the resized frame there is black.

    Raises:
        ImageError: The frame is empty, or so elongated that the resized frame would exceed `MAX_SIDE`.
    """
    height, width = frame
    if height < 1 or width < 1:
        raise ImageError(
            f"the frame is {height}x{width} pixels, and it needs at least 1x1. Check its source."
        )
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
            f"be {resized[0]}x{resized[1]}. The longest side may be {MAX_SIDE}. Cut the frame into pieces."
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
    """Return the weights that resize and crop a frame with changed borders to the network's input.

    ``rows @ channel @ columns.T`` is the resized and cropped channel in the frame's unit, before mean and std. The
    methods other than the ``float_`` ones then round it to uint8. For ``cv2_bilinear`` the product is within one grey
    level of OpenCV, which rounds its weights to 11 bits. The weights of `cv2_taps` are exact.

    Returns:
        ``rows`` ``[window height, framed height]`` and ``columns`` ``[window width, framed width]``. A row of
        zeros is padding.

    Raises:
        ImageError: The frame is empty, or so elongated that the resized frame would exceed `MAX_SIDE`.
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
    """OpenCV's integer weights along one axis, where each output takes two inputs.

    The weights are in units of ``2 ** -CV2_FRACTION_BITS`` and zero for padding.

    Attributes:
        first: The first input of each output, ``[outputs]`` int64.
        second: The next input, ``[outputs]`` int64. At an edge it is the first input again.
        first_weight: The weight of the first input, ``[outputs]`` int32.
        second_weight: The weight of the second input, ``[outputs]`` int32.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_weight: NDArray[np.int32]
    second_weight: NDArray[np.int32]


def cv2_taps(preprocessing: Preprocessing, frame: Size) -> tuple[TwoTaps, TwoTaps]:
    """Return the taps of rows and columns that OpenCV's INTER_LINEAR applies to a frame of uint8, with the crop.

    OpenCV computes in integers, first along x and then along y:

    1. ``s = first * weight + second * weight`` for each row, and ``t = s >> 4``.
    2. The result is ``((t_first * weight >> 16) + (t_second * weight >> 16) + 2) >> 2``.

    A column position outside the centres of the inputs is moved to the nearest centre. Along y only the row is moved
    and the fraction stays, which rounds differently.

    Raises:
        ImageError: The frame is empty, or so elongated that the resized frame would exceed `MAX_SIDE`.
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
    """Lay an anomaly map over its frame, bilinear between pixel centres and constant beyond the outer centres.

    Args:
        anomaly_map: A map ``[h, w]`` that covers the network's input, at any resolution.
        preprocessing: The steps from the frame to that input.
        frame: The size of the frame.

    Returns:
        A map ``[H, W]`` in the unit of ``anomaly_map``. Outside the crop, which was not inspected, it is NaN.

    Raises:
        ImageError: The frame is empty, or so elongated that the resized frame would exceed `MAX_SIDE`.
    """
    height, width = anomaly_map.shape
    rows, columns = _frame_matrices(preprocessing, frame, (height, width))
    wide = np.empty((height, columns.shape[0]), np.float32)
    with np.errstate(invalid="ignore"):  # NaN marks pixels that were not inspected
        columns.along_rows(anomaly_map, wide)
        result: NDArray[np.float32] = rows @ wide
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
    # OpenCV rounds both weights on their own, so they need not sum to one.
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
    """Return the matrices of the rows and the columns for `map_to_frame`."""
    place = placement(preprocessing, frame)
    rows, columns = (
        BandedMatrix(_cover_matrix(*axis, cells), outputs_at_once=at_once)
        for axis, cells, at_once in zip(place.axes, map_size, (16, 32), strict=True)
    )
    return rows, columns


def _cover_matrix(
    frame: int, shift: int, framed: int, resized: int, first: int, count: int, cells: int
) -> NDArray[np.float32]:
    """Return the weights that give the frame's pixels along one axis of the map's cells.

    The cells cover ``count`` resized pixels from ``first`` on.
    """
    position = np.arange(frame) + shift + 0.5
    inside = position * resized / framed - first
    # The centre of a cell lies half a cell behind its edge.
    taps = linear_taps(inside * cells / count - 0.5, cells)
    # Pixels that the change of the borders or the crop cuts off were not inspected, so they become NaN.
    seen = (position > 0) & (position < framed) & (inside >= 0) & (inside <= count)
    return dense_matrix(Taps(taps.inputs, np.where(seen[:, None], taps.weights, np.nan)), cells, np.float32)
