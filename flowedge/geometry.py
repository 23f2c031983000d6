"""Where every pixel goes: resampling as matrices, between a frame and the network's input and back.

Resampling is separable and linear, so resizing is ``rows @ image @ columns.T``. The host applies these
matrices block by block (`BandedMatrix`); the exporter stores the same ones in the graph as constants.

A centre crop is a choice of rows, so it costs nothing. What a crop leaves out was not inspected: there, a map
that is laid back over the frame is NaN, which no comparison calls anomalous or normal by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.framing import Size, centred, framing
from flowedge.manifest import MAX_SIDE, Preprocessing, ResizeMethod

Kernel: TypeAlias = Literal["bilinear", "lanczos", "bicubic"]
Arithmetic: TypeAlias = Literal["float64", "float32"]
PIL_FRACTION_BITS: Final = 22
"""PIL's weights for uint8 images are integers in units of ``2 ** -22``."""

CV2_FRACTION_BITS: Final = 11
"""OpenCV's weights for uint8 images are integers in units of ``2 ** -11``."""

GREY_WEIGHTS: Final = np.array([0.2989, 0.587, 0.114], np.float32)
"""The shares of red, green and blue in torchvision's grey, which do not quite sum to 1."""

_ONE_THREADS_WORK: Final = 1 << 18
"""Multiply-accumulates of a product that BLAS still leaves to one thread; woken ones linger beside the engine."""

_Real = TypeVar("_Real", np.float32, np.float64)
_KERNELS: Final[dict[ResizeMethod, Kernel]] = {
    "float_bilinear": "bilinear",
    "float_bicubic": "bicubic",
    "pil_bilinear": "bilinear",
    "pil_lanczos": "lanczos",
}
_SUPPORT: Final[dict[Kernel, float]] = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def bilinear_matrix(outputs: int, inputs: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Bilinear weights without antialiasing, as ``torch.nn.functional.interpolate`` computes them.

    Positions are rounded to float32 where torch rounds them, so the weights are torch's to the last bit.

    Returns:
        ``[outputs, inputs]``; each row sums to 1 and has at most two neighbouring non-zeros. With ``align_corners``
        a single output takes the first input.

    Raises:
        ValueError: A length below 1.
    """
    return _dense(_bilinear_taps(outputs, inputs, align_corners=align_corners), inputs, np.float32)


def bicubic_matrix(
    outputs: int, inputs: int, *, align_corners: bool, a: float = -0.75
) -> NDArray[np.float32]:
    """Bicubic weights without antialiasing, as ``torch.nn.functional.interpolate`` computes them.

    Args:
        outputs: Length of the result.
        inputs: Length of what is resampled.
        align_corners: As in torch.
        a: The slope of the cubic convolution kernel (Keys, 1981): -0.75 in torch and ONNX.

    Returns:
        ``[outputs, inputs]``; each row sums to 1. Taps beyond an edge count for the edge pixel.

    Raises:
        ValueError: A length below 1.
    """
    position = _positions(outputs, inputs, align_corners=align_corners)
    taps = np.floor(position).astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = _cubic(taps - position.astype(np.float64)[:, None], a)
    return _dense(_Taps(np.clip(taps, 0, inputs - 1), weights), inputs, np.float32)


def antialiased_matrix(
    outputs: int, inputs: int, *, kernel: Kernel, arithmetic: Arithmetic = "float64"
) -> NDArray[np.float64]:
    """Weights of a kernel that widens with the reduction, as PIL and torch's ``antialias=True`` compute them.

    Args:
        outputs: Length of the result.
        inputs: Length of what is resampled.
        kernel: ``bicubic`` is Keys' with a = -0.5, ``lanczos`` has three lobes.
        arithmetic: What positions and weights are rounded to on the way: PIL computes in float64, torch in
            the tensor's float32. Across a hard edge the two differ by up to 5e-5 of its height.

    Returns:
        ``[outputs, inputs]``; each row sums to 1.

    Raises:
        ValueError: A length below 1.
    """
    return _dense(_antialiased_taps(outputs, inputs, kernel, arithmetic), inputs, np.float64)


def pil_fixed_point(matrix: NDArray[np.float64]) -> NDArray[np.int32]:
    """PIL's integer weights for uint8 images, in units of ``2 ** -PIL_FRACTION_BITS``, halves away from zero.

    PIL's result of each of its two passes is ``(weights @ pixels + 2**21) >> 22``, clipped to 0..255.

    Args:
        matrix: ``[outputs, inputs]`` from `antialiased_matrix` or `input_matrices`.
    """
    scaled = matrix * (1 << PIL_FRACTION_BITS)
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def pil_resizes_rows_first(frame: Size, resized: Size) -> bool:
    """Whether PIL makes the pass along y before the one along x; they do not commute, as each is rounded.

    Pillow 13 does so where the height shrinks by more than twice as many pixels as the width (its pull request
    9549; the exact rule was measured). Older versions never do: there, bilinear differs by one grey level in
    places, and Lanczos by more where black and white alternate from pixel to pixel.
    """
    return frame[0] - resized[0] > max(2 * (frame[1] - resized[1]), 0)


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
        _dense(_resize_taps(preprocessing.method, resized, length).window(first, count), length, np.float64)
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


class BandedMatrix:
    """A resampling matrix in blocks of a few outputs, which need only a few of the inputs.

    A dense product spends nearly all its time on zeros; these small ones stay in the cache and run at BLAS's
    full speed. They are computed in the matrix's own dtype.

    Attributes:
        blocks: ``(outputs, inputs, weights)`` each: ``result[outputs] = weights @ image[inputs]``.
    """

    def __init__(self, matrix: NDArray[Any], *, outputs_at_once: int = 8) -> None:
        self.shape = matrix.shape
        self.dtype = matrix.dtype
        self.blocks: list[tuple[slice, slice, NDArray[Any]]] = []
        for first in range(0, len(matrix), outputs_at_once):
            block = matrix[first : first + outputs_at_once]
            used = np.flatnonzero(block.any(axis=0))
            inputs = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
            self.blocks.append(
                (slice(first, first + len(block)), inputs, np.ascontiguousarray(block[:, inputs]))
            )

    def __matmul__(self, image: NDArray[Any]) -> NDArray[Any]:
        """``matrix @ image`` for ``[inputs, m]`` numbers of any type; returns ``[outputs, m]``."""
        width = image.shape[1]
        result = np.empty((self.shape[0], width), self.dtype)
        for outputs, inputs, weights in self.blocks:
            at_once = max(1, _ONE_THREADS_WORK // max(1, weights.size))
            for first in range(0, width, at_once):
                part = slice(first, first + at_once)
                np.matmul(
                    weights, image[inputs, part].astype(self.dtype, copy=False), out=result[outputs, part]
                )
        return result


@dataclass(frozen=True, slots=True)
class _Taps:
    """A resampling matrix without its zeros: per output, which inputs it takes and how much of each.

    Attributes:
        inputs: ``[output, k]`` int64; an input may occur twice, then its weights add up.
        weights: ``[output, k]`` floating point.
    """

    inputs: NDArray[np.int64]
    weights: NDArray[Any]

    def window(self, first: int, count: int) -> _Taps:
        """``count`` outputs from ``first`` on; those that do not exist take nothing."""
        outputs = np.arange(first, first + count)
        exists = (outputs >= 0) & (outputs < len(self.inputs))
        outputs = np.clip(outputs, 0, len(self.inputs) - 1)
        return _Taps(self.inputs[outputs], self.weights[outputs] * exists[:, None])


def _bilinear_taps(outputs: int, inputs: int, *, align_corners: bool) -> _Taps:
    return _linear_taps(_positions(outputs, inputs, align_corners=align_corners), inputs)


def _linear_taps(position: NDArray[Any], inputs: int) -> _Taps:
    """Between the two neighbours of each position, which is held within the inputs' centres."""
    position = np.clip(position, 0, inputs - 1)
    first = position.astype(np.int64)
    fraction = position - first.astype(position.dtype)
    taken = np.stack([first, np.minimum(first + 1, inputs - 1)], axis=1)
    return _Taps(taken, np.stack([1 - fraction, fraction], axis=1))


def _antialiased_taps(outputs: int, inputs: int, kernel: Kernel, arithmetic: Arithmetic) -> _Taps:
    _check_lengths(outputs, inputs)
    real = np.dtype(arithmetic).type
    scale = real(inputs) / real(outputs)
    stretch = max(scale, real(1))
    support = real(_SUPPORT[kernel]) * stretch
    centre = scale * (np.arange(outputs, dtype=real) + real(0.5))
    first = np.maximum((centre - support + real(0.5)).astype(np.int64), 0)
    stop = np.minimum((centre + support + real(0.5)).astype(np.int64), inputs)
    taken = first[:, None] + np.arange((stop - first).max())
    offset = (taken.astype(real) - centre[:, None] + real(0.5)) / stretch
    weights = np.where(taken < stop[:, None], _kernel(offset, kernel), real(0))
    return _Taps(np.minimum(taken, inputs - 1), weights / weights.sum(axis=1, keepdims=True))


def _resize_taps(method: ResizeMethod, outputs: int, inputs: int) -> _Taps:
    if method == "cv2_bilinear":
        return _bilinear_taps(outputs, inputs, align_corners=False)
    arithmetic: Arithmetic = "float32" if method.startswith("float_") else "float64"
    return _antialiased_taps(outputs, inputs, _KERNELS[method], arithmetic)


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
    taps = _linear_taps(inside * cells / count - 0.5, cells)
    seen = (position > 0) & (position < framed) & (inside >= 0) & (inside <= count)
    return _dense(_Taps(taps.inputs, np.where(seen[:, None], taps.weights, np.nan)), cells, np.float32)


def _positions(outputs: int, inputs: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Where each output's centre lies among the inputs' centres, rounded as torch rounds it."""
    _check_lengths(outputs, inputs)
    index = np.arange(outputs, dtype=np.float32)
    if align_corners:
        scale = np.float32(inputs - 1) / np.float32(max(outputs - 1, 1))
        return np.asarray(index * scale, np.float32)
    scale = np.float32(inputs) / np.float32(outputs)
    # One rounding for both operations: torch is compiled to a fused multiply-add.
    return np.asarray(np.float64(scale) * (index + 0.5) - 0.5, dtype=np.float32)


def _kernel(x: NDArray[Any], kernel: Kernel) -> NDArray[Any]:
    """The kernel at distance ``x``."""
    if kernel == "bilinear":
        return np.where(np.abs(x) < 1, 1 - np.abs(x), 0)
    if kernel == "bicubic":
        return _cubic(x, -0.5)
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _cubic(x: NDArray[Any], a: float) -> NDArray[Any]:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _dense(taps: _Taps, inputs: int, dtype: type[_Real]) -> NDArray[_Real]:
    matrix = np.zeros((len(taps.inputs), inputs), dtype)
    np.add.at(matrix, (np.arange(len(taps.inputs))[:, None], taps.inputs), taps.weights.astype(dtype))
    return matrix


def _check_lengths(outputs: int, inputs: int) -> None:
    if outputs < 1 or inputs < 1:
        raise ValueError(f"lengths must be at least 1, got {outputs} outputs and {inputs} inputs")
