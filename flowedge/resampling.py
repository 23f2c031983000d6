"""Resample along one axis: weights as torch, PIL and OpenCV's float filters compute them, and products with them.

Resampling is separable and linear, so resizing is ``rows @ image @ columns.T``. The host applies these matrices block
by block (`BandedMatrix`). The exporter stores the same matrices in the graph as constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.framing import Size

Kernel: TypeAlias = Literal["bilinear", "lanczos", "bicubic"]
Arithmetic: TypeAlias = Literal["float64", "float32"]
PIL_FRACTION_BITS: Final = 22
"""PIL's weights for uint8 images are integers in units of ``2 ** -22``."""

_ONE_THREADS_WORK: Final = 1 << 18
"""The largest product in multiply-accumulates that BLAS leaves to one thread. Its woken threads would linger."""

_Real = TypeVar("_Real", np.float32, np.float64)
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
    return dense_matrix(bilinear_taps(outputs, inputs, align_corners=align_corners), inputs, np.float32)


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
    return dense_matrix(Taps(np.clip(taps, 0, inputs - 1), weights), inputs, np.float32)


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
class Taps:
    """A resampling matrix without its zeros: per output, which inputs it takes and how much of each.

    Attributes:
        inputs: ``[output, k]`` int64; an input may occur twice, then its weights add up.
        weights: ``[output, k]`` floating point.
    """

    inputs: NDArray[np.int64]
    weights: NDArray[Any]

    def window(self, first: int, count: int) -> Taps:
        """``count`` outputs from ``first`` on; those that do not exist take nothing."""
        outputs = np.arange(first, first + count)
        exists = (outputs >= 0) & (outputs < len(self.inputs))
        outputs = np.clip(outputs, 0, len(self.inputs) - 1)
        return Taps(self.inputs[outputs], self.weights[outputs] * exists[:, None])


def linear_taps(position: NDArray[Any], inputs: int) -> Taps:
    """Between the two neighbours of each position, which is held within the inputs' centres."""
    position = np.clip(position, 0, inputs - 1)
    first = position.astype(np.int64)
    fraction = position - first.astype(position.dtype)
    taken = np.stack([first, np.minimum(first + 1, inputs - 1)], axis=1)
    return Taps(taken, np.stack([1 - fraction, fraction], axis=1))


def antialiased_taps(outputs: int, inputs: int, kernel: Kernel, arithmetic: Arithmetic) -> Taps:
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
    return Taps(np.minimum(taken, inputs - 1), weights / weights.sum(axis=1, keepdims=True))


def bilinear_taps(outputs: int, inputs: int, *, align_corners: bool) -> Taps:
    return linear_taps(_positions(outputs, inputs, align_corners=align_corners), inputs)


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


def dense_matrix(taps: Taps, inputs: int, dtype: type[_Real]) -> NDArray[_Real]:
    matrix = np.zeros((len(taps.inputs), inputs), dtype)
    np.add.at(matrix, (np.arange(len(taps.inputs))[:, None], taps.inputs), taps.weights.astype(dtype))
    return matrix


def _check_lengths(outputs: int, inputs: int) -> None:
    if outputs < 1 or inputs < 1:
        raise ValueError(f"lengths must be at least 1, got {outputs} outputs and {inputs} inputs")
