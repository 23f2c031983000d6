"""The way from a frame to the network's input, as nodes of the graph.

Resizing is a product with a constant matrix along each axis: the matrices that the host uses. In blocks of outputs,
since an output needs only a few neighbouring inputs, and a dense product would spend its time on zeros.

PIL and OpenCV resize grey levels with integers. Float32 holds integers up to 2^24 exactly, and so does every sum of
them, in any order: weights of more bits are cut into parts whose sums stay below that, and the parts are put together
by floors and powers of two. So the grey levels are the libraries' own, on every engine that computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowedge.errors import ExportError
from flowedge.framing import Framing, framing
from flowedge.geometry import (
    GREY_WEIGHTS,
    PIL_FRACTION_BITS,
    TwoTaps,
    cv2_taps,
    input_matrices,
    pil_fixed_point,
    pil_resizes_rows_first,
    placement,
)
from flowedge.manifest import Preprocessing

_EXACT: Final = 2**24  # the largest integer below which float32 has all
_BLOCKS: Final = 8  # of outputs, at most: each is a product with fewer zeros, and a copy of its inputs
_BLOCK_OUTPUTS: Final = 32  # at least, so that a product is worth its call

Axis = Literal[-2, -1]


class Preprocess(nn.Module):
    """``(N, H, W, 3)`` uint8 frames to ``(N, 3, h, w)`` float32, normalised, as the host's ``Preprocessor``.

    Equal to it for the methods that give grey levels, and but for the order of sums for the ``float_`` ones.
    """

    mean: Tensor
    std: Tensor
    grey_weights: Tensor

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        super().__init__()
        self.framing: nn.Module = nn.Identity()
        if preprocessing.frame_steps:
            changed = framing(preprocessing.frame_steps, frame)
            self.framing, frame = _Framing(changed), changed.size
            preprocessing = msgspec.structs.replace(preprocessing, frame_steps=())
        is_cv2 = preprocessing.method == "cv2_bilinear"
        self.resize = (_Cv2Resize if is_cv2 else _MatrixResize)(preprocessing, frame)
        self._grayscale = preprocessing.grayscale
        self.register_buffer("grey_weights", torch.from_numpy(GREY_WEIGHTS.copy())[:, None, None])
        self.register_buffer("mean", torch.tensor(preprocessing.mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std, dtype=torch.float32)[:, None, None])

    def forward(self, frame: Tensor) -> Tensor:
        # TensorRT takes uint8 as an input only, so the cast comes first.
        planes: Tensor = self.resize(self.framing(frame.to(torch.float32))) / 255
        if self._grayscale:
            planes = (planes * self.grey_weights).sum(dim=1, keepdim=True)
        return (planes - self.mean) / self.std


def check_frame_size(
    preprocessing: Preprocessing, frame: tuple[int, int], image_size: tuple[int, int]
) -> None:
    """Check that frames of a size become the network's input.

    Raises:
        ExportError: They become another size.
        ImageError: They cannot be resized.
    """
    window = placement(preprocessing, frame).window
    if window != image_size:
        raise ExportError(
            f"frames of {frame[0]}x{frame[1]} become {window[0]}x{window[1]} pixels by the checkpoint's "
            f"preprocessing, its network takes {image_size[0]}x{image_size[1]}. Name another --frame-size, or the "
            f"--image-size that suits these frames."
        )


class _Framing(nn.Module):
    """The change of a frame's borders: rows and columns are gathered, then filled where there is nothing to gather."""

    rows: Tensor
    columns: Tensor

    def __init__(self, changed: Framing) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(np.maximum(changed.rows, 0)))
        self.register_buffer("columns", torch.from_numpy(np.maximum(changed.columns, 0)))
        self._fills = 0
        for step, fill in enumerate(changed.fills):
            rows, columns = (torch.from_numpy(~filled) for filled in changed.filled_by(step))
            if rows.all() and columns.all():
                continue
            kept = (rows[:, None, None] & columns[:, None]).to(torch.float32)
            self.register_buffer(f"kept_{self._fills}", kept)
            self.register_buffer(f"fill_{self._fills}", (1 - kept) * torch.tensor(fill, dtype=torch.float32))
            self._fills += 1

    def forward(self, frame: Tensor) -> Tensor:
        """``(N, H, W, 3)`` float32 grey levels in and out."""
        frame = frame.index_select(1, self.rows).index_select(2, self.columns)
        for number in range(self._fills):
            frame = frame * self.get_buffer(f"kept_{number}") + self.get_buffer(f"fill_{number}")
        return frame


class _MatrixResize(nn.Module):
    """Two passes: the one along y on interleaved channels where it comes first, so that the frame is not turned."""

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = input_matrices(preprocessing, frame)
        if preprocessing.method.startswith("float_"):
            self._rows_first = _products(rows, columns) <= _products(columns, rows)
            self.rows: nn.Module = _FloatPass(rows.astype(np.float32), -2)
            self.columns: nn.Module = _FloatPass(columns.astype(np.float32), -1)
        else:  # each pass rounds, so the order is PIL's
            self._rows_first = pil_resizes_rows_first(frame, placement(preprocessing, frame).resized)
            self.rows = _GreyPass(pil_fixed_point(rows), -2)
            self.columns = _GreyPass(pil_fixed_point(columns), -1)
        self._frame, self._height = frame, len(rows)

    def forward(self, frame: Tensor) -> Tensor:
        height, width = self._frame
        if self._rows_first:
            strips = self.rows(frame.reshape(-1, height, width * 3))
            planes: Tensor = self.columns(strips.reshape(-1, self._height, width, 3).permute(0, 3, 1, 2))
        else:
            planes = self.rows(self.columns(frame.permute(0, 3, 1, 2)))
        return planes


class _FloatPass(nn.Module):
    """The product with one matrix along one axis."""

    def __init__(self, matrix: NDArray[np.float32], axis: Axis) -> None:
        super().__init__()
        self._product = None if _is_identity(matrix, 1) else _BlockProduct([matrix], axis)

    def forward(self, x: Tensor) -> Tensor:
        if self._product is None:
            return x
        result: Tensor = self._product(x)[0]
        return result


class _GreyPass(nn.Module):
    """PIL's pass along one axis: ``(weights @ levels + 2**21) >> 22``, clipped to 0..255."""

    def __init__(self, weights: NDArray[np.int32], axis: Axis) -> None:
        super().__init__()
        self._product = None
        if not _is_identity(weights, 1 << PIL_FRACTION_BITS):
            parts, self._bits = exact_parts(weights)
            self._left = PIL_FRACTION_BITS - self._bits * (len(parts) - 1)
            self._product = _BlockProduct(parts, axis)

    def forward(self, levels: Tensor) -> Tensor:
        if self._product is None:
            return levels
        low, *higher = self._product(levels)
        for part in higher:
            low = part + torch.floor(low * 2.0**-self._bits)
        return torch.floor((low + 2.0 ** (self._left - 1)) * 2.0**-self._left).clamp(0, 255)


class _BlockProduct(nn.Module):
    """Products of the same numbers with several matrices of one shape, along rows (-2) or columns (-1)."""

    def __init__(self, matrices: Sequence[NDArray[np.float32]], axis: Axis) -> None:
        super().__init__()
        self._axis = axis
        self._inputs: list[tuple[int, int]] = []
        outputs = len(matrices[0])
        for block in np.array_split(np.arange(outputs), max(min(_BLOCKS, outputs // _BLOCK_OUTPUTS), 1)):
            first, stop = _used(matrices, block)
            for part, matrix in enumerate(matrices):
                weights = matrix[block, first:stop]
                turned = weights if axis == -2 else weights.T
                self.register_buffer(
                    f"block_{len(self._inputs)}_{part}", torch.from_numpy(np.ascontiguousarray(turned))
                )
            self._inputs.append((first, stop - first))
        self._parts = len(matrices)

    def forward(self, x: Tensor) -> list[Tensor]:
        taken = [x.narrow(self._axis, first, count) for first, count in self._inputs]
        return [
            torch.cat([self._times(x, number, part) for number, x in enumerate(taken)], self._axis)
            for part in range(self._parts)
        ]

    def _times(self, x: Tensor, block: int, part: int) -> Tensor:
        weights = self.get_buffer(f"block_{block}_{part}")
        return weights @ x if self._axis == -2 else x @ weights


class _Cv2Resize(nn.Module):
    """OpenCV's INTER_LINEAR on uint8 (see ``flowedge.geometry.cv2_taps``): four pixels for each output."""

    row_inputs: Tensor
    column_inputs: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = cv2_taps(preprocessing, frame)
        self._size = len(rows.first), len(columns.first)
        self.register_buffer("row_inputs", _both(rows))
        self.register_buffer("column_inputs", _both(columns))
        self.register_buffer("top", torch.from_numpy(rows.first_weight.astype(np.float32))[:, None])
        self.register_buffer("bottom", torch.from_numpy(rows.second_weight.astype(np.float32))[:, None])
        self.register_buffer("left", torch.from_numpy(columns.first_weight.astype(np.float32)))
        self.register_buffer("right", torch.from_numpy(columns.second_weight.astype(np.float32)))

    def forward(self, frame: Tensor) -> Tensor:
        height, width = self._size
        pixels = frame.index_select(1, self.row_inputs).index_select(2, self.column_inputs)
        pixels = pixels.permute(0, 3, 1, 2)
        along_x = pixels.narrow(-1, 0, width) * self.left + pixels.narrow(-1, width, width) * self.right
        t = torch.floor(along_x * 2.0**-4)
        upper = _high_half(t.narrow(-2, 0, height), self.top)
        lower = _high_half(t.narrow(-2, height, height), self.bottom)
        return torch.floor((upper + lower + 2) * 2.0**-2)


def _high_half(t: Tensor, weight: Tensor) -> Tensor:
    """``t * weight >> 16`` for t below 2^15: the product needs 26 bits, so t comes in two bytes."""
    high = torch.floor(t * 2.0**-8)
    low = t - high * 2.0**8
    return torch.floor((high * weight + torch.floor(low * weight * 2.0**-8)) * 2.0**-8)


def exact_parts(weights: NDArray[np.int32]) -> tuple[list[NDArray[np.float32]], int]:
    """Cut integer weights so that float32 adds their products with grey levels exactly, in any order.

    Args:
        weights: ``[outputs, inputs]`` in units of ``2 ** -PIL_FRACTION_BITS``.

    Returns:
        The parts, lowest first, and how many bits one has: ``weights`` is the sum of ``part_i * 2 ** (bits * i)``.
        There are as few as suffice.
    """
    for count in range(2, PIL_FRACTION_BITS):
        bits = -(-PIL_FRACTION_BITS // count)
        parts: list[NDArray[np.int64]] = []
        rest = weights.astype(np.int64)
        for _ in range(count - 1):
            higher = (rest + (1 << (bits - 1))) >> bits
            parts.append(rest - (higher << bits))
            rest = higher
        parts.append(rest)
        # Of a part's products and of what is carried into it, which is less than the sum below it.
        sums = [255 * int(np.abs(part).sum(axis=1).max()) for part in parts]
        if max(sums) + (max(sums) >> bits) + 2**bits < _EXACT:
            return [part.astype(np.float32) for part in parts], bits
    raise AssertionError("a row of weights that no parts hold")


def _used(matrices: Sequence[NDArray[np.float32]], outputs: NDArray[np.intp]) -> tuple[int, int]:
    """First input and the one after the last that any of these outputs takes; one input where all are padding."""
    used = np.flatnonzero(np.any([matrix[outputs].any(axis=0) for matrix in matrices], axis=0))
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)


def _products(first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Multiplications of one channel by two dense passes, in this order."""
    return int(first.size * second.shape[1] + second.size * first.shape[0])


def _is_identity(matrix: NDArray[np.float32] | NDArray[np.int32], one: int) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, one * np.eye(len(matrix)))


def _both(taps: TwoTaps) -> Tensor:
    return torch.from_numpy(np.concatenate([taps.first, taps.second]))
