"""Preprocess frames inside the graph: from uint8 pixels to the network's input.

Resizing is a product with a constant matrix along each axis. The matrices are the host's. A product is computed in
groups of outputs, because an output needs only a few neighbouring inputs, and a dense product would spend its time on
zeros.

PIL and OpenCV resize grey levels with integers. Float32 holds integers up to 2^24 exactly, and sums below 2^24 are
exact in any order. So weights of more bits are cut into parts whose sums stay below 2^24, and floors and powers of two
join the parts. The grey levels are then those of PIL and OpenCV on every engine that computes in float32.
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
from flowedge.geometry import GREY_WEIGHTS, TwoTaps, cv2_taps, input_matrices, placement
from flowedge.manifest import Preprocessing
from flowedge.resampling import PIL_FRACTION_BITS, exact_parts, pil_fixed_point, pil_resizes_rows_first

_MOST_GROUPS: Final = 8
"""Largest number of groups of outputs. Each group is a product with fewer zeros, and costs a copy of its inputs."""
_LEAST_OUTPUTS: Final = 32
"""Smallest number of outputs of a group that makes a product worth its call."""

Axis = Literal[-2, -1]


class Preprocess(nn.Module):
    """Turn ``(N, H, W, 3)`` uint8 frames into the normalised network input ``(N, 3, h, w)`` float32.

    The input equals that of the host's ``Preprocessor`` for the methods that give grey levels. For the ``float_``
    methods only the order of sums differs.
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
    """Check that frames of ``(height, width)`` pixels become a network input of ``image_size``.

    Raises:
        ExportError: The frames become a network input of another size.
        ImageError: The preprocessing cannot resize the frames.
    """
    window = placement(preprocessing, frame).window
    if window != image_size:
        raise ExportError(
            f"frames of {frame[0]}x{frame[1]} become {window[0]}x{window[1]} pixels by the checkpoint's "
            f"preprocessing, and its network takes {image_size[0]}x{image_size[1]}. Name another --frame-size, or the "
            f"--image-size that suits these frames."
        )


class _Framing(nn.Module):
    """Crop and pad frames by a gather of rows and columns, and fill the pixels outside of the frame."""

    rows: Tensor
    columns: Tensor

    def __init__(self, changed: Framing) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(np.maximum(changed.rows, 0)))
        self.register_buffer("columns", torch.from_numpy(np.maximum(changed.columns, 0)))
        self._fills = 0
        for step, fill in enumerate(changed.fills):
            # A step that fills no pixel adds nothing to the graph.
            rows, columns = (torch.from_numpy(~filled) for filled in changed.filled_by(step))
            if rows.all() and columns.all():
                continue
            kept = (rows[:, None, None] & columns[:, None]).to(torch.float32)
            self.register_buffer(f"kept_{self._fills}", kept)
            self.register_buffer(f"fill_{self._fills}", (1 - kept) * torch.tensor(fill, dtype=torch.float32))
            self._fills += 1

    def forward(self, frame: Tensor) -> Tensor:
        """Crop and pad grey levels ``(N, H, W, 3)`` in float32."""
        frame = frame.index_select(1, self.rows).index_select(2, self.columns)
        for number in range(self._fills):
            frame = frame * self.get_buffer(f"kept_{number}") + self.get_buffer(f"fill_{number}")
        return frame


class _MatrixResize(nn.Module):
    """Resize in two passes, one along each axis.

    A pass along y that comes first works on interleaved channels, so that the full frame needs no transpose.
    """

    def __init__(self, preprocessing: Preprocessing, frame: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = input_matrices(preprocessing, frame)
        # Passes in float32 can come in the order of fewer products. PIL's passes round, so PIL's order is kept.
        if preprocessing.method.startswith("float_"):
            self._rows_first = _products(rows, columns) <= _products(columns, rows)
            self.rows: nn.Module = _FloatPass(rows.astype(np.float32), -2)
            self.columns: nn.Module = _FloatPass(columns.astype(np.float32), -1)
        else:
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
    """Resize along one axis by a product with one matrix, or do nothing where the size stays."""

    def __init__(self, matrix: NDArray[np.float32], axis: Axis) -> None:
        super().__init__()
        self._product = None if _is_identity(matrix, 1) else _BlockProduct([matrix], axis)

    def forward(self, x: Tensor) -> Tensor:
        if self._product is None:
            return x
        result: Tensor = self._product(x)[0]
        return result


class _GreyPass(nn.Module):
    """Resize as PIL does along one axis: ``(weights @ levels + 2**21) >> 22``, clipped to 0..255."""

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
        # Each part carries its upper bits into the next one. The shift by 22 bits is what is left after that.
        low, *higher = self._product(levels)
        for part in higher:
            low = part + torch.floor(low * 2.0**-self._bits)
        return torch.floor((low + 2.0 ** (self._left - 1)) * 2.0**-self._left).clamp(0, 255)


class _BlockProduct(nn.Module):
    """Multiply one input by several matrices of one shape along one axis (-2 for rows, -1 for columns).

    A product is computed in groups of outputs, since each output needs few inputs.
    """

    def __init__(self, matrices: Sequence[NDArray[np.float32]], axis: Axis) -> None:
        super().__init__()
        self._axis = axis
        self._inputs: list[tuple[int, int]] = []
        outputs = len(matrices[0])
        groups = max(min(_MOST_GROUPS, outputs // _LEAST_OUTPUTS), 1)
        for group in np.array_split(np.arange(outputs), groups):
            first, stop = _inputs_of(matrices, group)
            for part, matrix in enumerate(matrices):
                weights = matrix[group, first:stop]
                turned = weights if axis == -2 else weights.T
                self.register_buffer(
                    f"block_{len(self._inputs)}_{part}", torch.from_numpy(np.ascontiguousarray(turned))
                )
            self._inputs.append((first, stop - first))
        self._parts = len(matrices)

    def forward(self, x: Tensor) -> list[Tensor]:
        slices = [x.narrow(self._axis, first, count) for first, count in self._inputs]
        return [
            torch.cat([self._times(x, group, part) for group, x in enumerate(slices)], self._axis)
            for part in range(self._parts)
        ]

    def _times(self, x: Tensor, group: int, part: int) -> Tensor:
        weights = self.get_buffer(f"block_{group}_{part}")
        return weights @ x if self._axis == -2 else x @ weights


class _Cv2Resize(nn.Module):
    """Resize as OpenCV's INTER_LINEAR does on uint8, from four pixels for each output.

    The taps are explained in ``flowedge.geometry.cv2_taps``.
    """

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
        # Two gathers fetch the two rows and the two columns of each output, the first taps before the second.
        height, width = self._size
        pixels = frame.index_select(1, self.row_inputs).index_select(2, self.column_inputs)
        pixels = pixels.permute(0, 3, 1, 2)
        along_x = pixels.narrow(-1, 0, width) * self.left + pixels.narrow(-1, width, width) * self.right
        # OpenCV drops 4 bits after the first axis, 16 bits of each product of the second, and the last 2 bits.
        t = torch.floor(along_x * 2.0**-4)
        upper = _high_half(t.narrow(-2, 0, height), self.top)
        lower = _high_half(t.narrow(-2, height, height), self.bottom)
        return torch.floor((upper + lower + 2) * 2.0**-2)


def _high_half(t: Tensor, weight: Tensor) -> Tensor:
    """Compute ``t * weight >> 16`` for t below 2^15 in two bytes of t, because the product needs 26 bits."""
    high = torch.floor(t * 2.0**-8)
    low = t - high * 2.0**8
    return torch.floor((high * weight + torch.floor(low * weight * 2.0**-8)) * 2.0**-8)


def _inputs_of(matrices: Sequence[NDArray[np.float32]], outputs: NDArray[np.intp]) -> tuple[int, int]:
    """Return the range of source pixels, ``(first, stop)``, that have a weight in these rows of a resize matrix.

    Rows without any weight, which are padding, get a range of one pixel.
    """
    used = np.flatnonzero(np.any([matrix[outputs].any(axis=0) for matrix in matrices], axis=0))
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)


def _products(first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Count the multiplications that two dense resize passes in this order take for one channel."""
    return int(first.size * second.shape[1] + second.size * first.shape[0])


def _is_identity(matrix: NDArray[np.float32] | NDArray[np.int32], one: int) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, one * np.eye(len(matrix)))


def _both(taps: TwoTaps) -> Tensor:
    """Return the source indices of the first taps of all outputs, followed by those of the second taps."""
    return torch.from_numpy(np.concatenate([taps.first, taps.second]))
