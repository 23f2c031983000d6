"""Resample along one axis with the weights of torch and PIL, and multiply quickly by them.

Resampling is separable and linear, so resizing is ``rows @ image @ columns.T``. The host applies these matrices block
by block (`BandedMatrix`). The exporter stores the same matrices in the graph as constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.framing import Size

Kernel: TypeAlias = Literal["bilinear", "lanczos", "bicubic"]
Arithmetic: TypeAlias = Literal["float64", "float32"]
PIL_FRACTION_BITS: Final = 22
"""PIL's weights for uint8 images are integers in units of ``2 ** -22``."""

_EXACT: Final = 2**24
"""Float32 holds every integer up to this one."""

_ONE_THREADS_WORK: Final = 1 << 18
"""The largest product in multiply-accumulates that BLAS leaves to one thread.

BLAS wakes threads for a larger product, and the woken threads would linger.
"""

_Real = TypeVar("_Real", np.float32, np.float64)
_SUPPORT: Final[dict[Kernel, float]] = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def bilinear_matrix(outputs: int, inputs: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Return bilinear weights without antialiasing, as ``torch.nn.functional.interpolate`` computes them.

    Positions are rounded to float32 where torch rounds them, so the weights are torch's to the last bit.

    Returns:
        Weights ``[outputs, inputs]``. Each row sums to 1 and has at most two neighbouring non-zeros. With
        ``align_corners`` a single output takes the first input.

    Raises:
        ValueError: A length is below 1.
    """
    return dense_matrix(bilinear_taps(outputs, inputs, align_corners=align_corners), inputs, np.float32)


def bicubic_matrix(
    outputs: int, inputs: int, *, align_corners: bool, a: float = -0.75
) -> NDArray[np.float32]:
    """Return bicubic weights without antialiasing, as ``torch.nn.functional.interpolate`` computes them.

    Args:
        outputs: The length of the result.
        inputs: The length of the resampled axis.
        align_corners: True when the centres of the first and the last pixel stay in place, as torch defines it.
        a: The slope of the cubic convolution kernel (Keys, 1981): -0.75 in torch and ONNX.

    Returns:
        Weights ``[outputs, inputs]``. Each row sums to 1, and taps beyond an edge count for the edge pixel.

    Raises:
        ValueError: A length is below 1.
    """
    position = _positions(outputs, inputs, align_corners=align_corners)
    taps = np.floor(position).astype(np.int64)[:, None] + np.arange(-1, 3)
    weights = _cubic(taps - position.astype(np.float64)[:, None], a)
    return dense_matrix(Taps(np.clip(taps, 0, inputs - 1), weights), inputs, np.float32)


def pil_fixed_point(matrix: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return PIL's integer weights for uint8 images, in units of ``2 ** -PIL_FRACTION_BITS``.

    Halves are rounded away from zero. PIL's result of each of its two passes is ``(weights @ pixels + 2**21) >> 22``,
    clipped to 0..255.

    Args:
        matrix: Weights ``[outputs, inputs]``, such as those of `flowedge.geometry.input_matrices`.
    """
    scaled = matrix * (1 << PIL_FRACTION_BITS)
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def exact_parts(weights: NDArray[np.int32]) -> tuple[list[NDArray[np.float32]], int]:
    """Cut integer weights so that float32 adds their products with grey levels exactly, in any order.

    Args:
        weights: ``[outputs, inputs]`` in units of ``2 ** -PIL_FRACTION_BITS``.

    Returns:
        The parts, lowest first, and the number of bits of a part. ``weights`` is the sum of
        ``part_i * 2 ** (bits * i)``. The number of parts is the smallest that suffices.
    """
    for count in range(2, PIL_FRACTION_BITS):
        bits = -(-PIL_FRACTION_BITS // count)
        # Each part is the remainder of a rounded division, which halves the largest absolute value of a part.
        parts: list[NDArray[np.int64]] = []
        rest = weights.astype(np.int64)
        for _ in range(count - 1):
            higher = (rest + (1 << (bits - 1))) >> bits
            parts.append(rest - (higher << bits))
            rest = higher
        parts.append(rest)
        # Upper bounds of the sums of one part's products. To them comes the carry from the part below.
        sums = [255 * int(np.abs(part).sum(axis=1).max()) for part in parts]
        if max(sums) + (max(sums) >> bits) + 2**bits < _EXACT:
            return [part.astype(np.float32) for part in parts], bits
    raise AssertionError("a row of weights that no parts hold")


def pil_resizes_rows_first(frame: Size, resized: Size) -> bool:
    """Return True when PIL makes the pass along y before the pass along x. Each pass rounds, so the order matters.

    Pillow 13 begins with y where the height shrinks by more than twice as many pixels as the width (pull request 9549,
    the exact rule was measured). Older versions always begin with x. The results then differ by one grey level in
    places for bilinear, and by more for Lanczos where black and white alternate from pixel to pixel.
    """
    return frame[0] - resized[0] > max(2 * (frame[1] - resized[1]), 0)


class BandedMatrix:
    """A resampling matrix, cut into bands of a few outputs that need only a few of the inputs.

    A dense product spends nearly all its time on zeros. The small products stay in the cache and run at the full speed
    of BLAS, in the matrix's own dtype.

    Attributes:
        bands: A tuple ``(outputs, inputs, weights)`` for each band: ``result[outputs] = weights @ image[inputs]``.
    """

    def __init__(self, matrix: NDArray[Any], *, outputs_at_once: int = 8) -> None:
        self.shape = matrix.shape
        self.dtype = matrix.dtype
        self.bands: list[tuple[slice, slice, NDArray[Any]]] = []
        for first in range(0, len(matrix), outputs_at_once):
            band = matrix[first : first + outputs_at_once]
            # The non-zeros of neighbouring outputs lie side by side, so one slice of the inputs holds all of them.
            used = np.flatnonzero(band.any(axis=0))
            inputs = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
            self.bands.append(
                (slice(first, first + len(band)), inputs, np.ascontiguousarray(band[:, inputs]))
            )

    def __matmul__(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return ``matrix @ image``, of shape ``[outputs, m]``, for ``[inputs, m]`` numbers of any type."""
        width = image.shape[1]
        result = np.empty((self.shape[0], width), self.dtype)
        for outputs, inputs, weights in self.bands:
            # The columns are taken in parts, each a product that BLAS computes in this thread.
            at_once = max(1, _ONE_THREADS_WORK // max(1, weights.size))
            for first in range(0, width, at_once):
                part = slice(first, first + at_once)
                np.matmul(
                    weights, image[inputs, part].astype(self.dtype, copy=False), out=result[outputs, part]
                )
        return result

    def along_rows(self, image: NDArray[Any], result: NDArray[Any]) -> None:
        """Write ``image @ matrix.T`` into ``result``, both in the matrix's own type.

        Args:
            image: Numbers ``[m, inputs]``.
            result: The place of the product, ``[m, outputs]``.
        """
        for outputs, inputs, turned in self._turned_bands:
            at_once = max(1, _ONE_THREADS_WORK // max(1, turned.size))
            for first in range(0, len(image), at_once):
                part = slice(first, first + at_once)
                np.matmul(image[part, inputs], turned, out=result[part, outputs])

    @cached_property
    def _turned_bands(self) -> list[tuple[slice, slice, NDArray[Any]]]:
        # BLAS takes several times as long for small weights that lie the other way round in memory.
        return [(outputs, inputs, np.ascontiguousarray(weights.T)) for outputs, inputs, weights in self.bands]


@dataclass(frozen=True, slots=True)
class Taps:
    """A resampling matrix without its zeros: the inputs of each output and their weights.

    Attributes:
        inputs: The numbers of the inputs, ``[output, k]`` int64. The weights of an input that occurs twice add up.
        weights: The weights, ``[output, k]`` floating point.
    """

    inputs: NDArray[np.int64]
    weights: NDArray[Any]

    def window(self, first: int, count: int) -> Taps:
        """Return ``count`` outputs from ``first`` on. Outputs that do not exist have weights of zero."""
        outputs = np.arange(first, first + count)
        exists = (outputs >= 0) & (outputs < len(self.inputs))
        outputs = np.clip(outputs, 0, len(self.inputs) - 1)
        return Taps(self.inputs[outputs], self.weights[outputs] * exists[:, None])


def linear_taps(position: NDArray[Any], inputs: int) -> Taps:
    """Interpolate linearly between the two neighbours of each position.

    A position outside the centres of the first and the last input is moved to the nearer of them.
    """
    position = np.clip(position, 0, inputs - 1)
    first = position.astype(np.int64)
    fraction = position - first.astype(position.dtype)
    taken = np.stack([first, np.minimum(first + 1, inputs - 1)], axis=1)
    return Taps(taken, np.stack([1 - fraction, fraction], axis=1))


def antialiased_taps(outputs: int, inputs: int, kernel: Kernel, arithmetic: Arithmetic) -> Taps:
    """Return taps of a kernel that widens with the reduction, as PIL and torch's ``antialias=True`` compute them.

    Args:
        outputs: The length of the result.
        inputs: The length of the resampled axis.
        kernel: The kernel. ``bicubic`` is Keys' with a = -0.5, and ``lanczos`` has three lobes.
        arithmetic: The type that positions and weights are rounded to. PIL computes in float64, and torch in the
            tensor's float32. Across a hard edge the two differ by up to 5e-5 of its height.

    Returns:
        Taps whose weights sum to 1 for each output.

    Raises:
        ValueError: A length is below 1.
    """
    _check_lengths(outputs, inputs)
    real = np.dtype(arithmetic).type
    # When the image shrinks, the kernel widens by the scale so that every input counts. The kernel never gets narrower.
    scale = real(inputs) / real(outputs)
    stretch = max(scale, real(1))
    support = real(_SUPPORT[kernel]) * stretch
    centre = scale * (np.arange(outputs, dtype=real) + real(0.5))
    first = np.maximum((centre - support + real(0.5)).astype(np.int64), 0)
    stop = np.minimum((centre + support + real(0.5)).astype(np.int64), inputs)
    # All outputs get as many taps as the one with the most. Taps beyond the end of an output's own get no weight.
    taken = first[:, None] + np.arange((stop - first).max())
    offset = (taken.astype(real) - centre[:, None] + real(0.5)) / stretch
    weights = np.where(taken < stop[:, None], _kernel(offset, kernel), real(0))
    return Taps(np.minimum(taken, inputs - 1), weights / weights.sum(axis=1, keepdims=True))


def bilinear_taps(outputs: int, inputs: int, *, align_corners: bool) -> Taps:
    """Return bilinear taps without antialiasing, see `bilinear_matrix`."""
    return linear_taps(_positions(outputs, inputs, align_corners=align_corners), inputs)


def _positions(outputs: int, inputs: int, *, align_corners: bool) -> NDArray[np.float32]:
    """Return the place of each output's centre among the inputs' centres, rounded as torch rounds it."""
    _check_lengths(outputs, inputs)
    index = np.arange(outputs, dtype=np.float32)
    if align_corners:
        scale = np.float32(inputs - 1) / np.float32(max(outputs - 1, 1))
        return np.asarray(index * scale, np.float32)
    scale = np.float32(inputs) / np.float32(outputs)
    # Both operations have one rounding, since torch is compiled to a fused multiply-add.
    return np.asarray(np.float64(scale) * (index + 0.5) - 0.5, dtype=np.float32)


def _kernel(x: NDArray[Any], kernel: Kernel) -> NDArray[Any]:
    """Return the value of a kernel at distance ``x``."""
    if kernel == "bilinear":
        return np.where(np.abs(x) < 1, 1 - np.abs(x), 0)
    if kernel == "bicubic":
        return _cubic(x, -0.5)
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _cubic(x: NDArray[Any], a: float) -> NDArray[Any]:
    """Return the value of Keys' cubic convolution kernel at distance ``x``."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def dense_matrix(taps: Taps, inputs: int, dtype: type[_Real]) -> NDArray[_Real]:
    """Return taps as a matrix ``[outputs, inputs]``."""
    matrix = np.zeros((len(taps.inputs), inputs), dtype)
    np.add.at(matrix, (np.arange(len(taps.inputs))[:, None], taps.inputs), taps.weights.astype(dtype))
    return matrix


def _check_lengths(outputs: int, inputs: int) -> None:
    if outputs < 1 or inputs < 1:
        raise ValueError(f"lengths must be at least 1, got {outputs} outputs and {inputs} inputs")
