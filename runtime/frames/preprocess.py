"""Turn a camera's frame into the network's input, exactly as the checkpoint's training did it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, TypeAlias

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.framing import Size, framing
from flowedge.geometry import GREY_WEIGHTS, input_matrices, placement
from flowedge.manifest import Preprocessing, ResizeMethod
from flowedge.resampling import PIL_FRACTION_BITS, BandedMatrix, pil_fixed_point, pil_resizes_rows_first
from flowedge.runtime.device.limits import check_frame_size

_SIZES_KEPT: Final = 16  # frame sizes whose matrices are kept
_STRIP_ROWS: Final = 16  # of the result that are computed at once
# At least four megabytes of float64 are resized along x at once, since NumPy asks for large pages from there on.
_STRIP_PIXELS: Final = 1 << 19
_MOST_KEPT_BYTES: Final = 16 << 20  # of one array that a thread keeps for the next frame

_Strip: TypeAlias = tuple[slice, slice, BandedMatrix]
"""Some rows of a result, the rows of the frame that they need, and the weights."""


def check_frame(frame: NDArray[np.uint8]) -> None:
    """Check the shape, the type and the size of a frame, on which every later step relies.

    Args:
        frame: The frame, which must be ``(H, W, 3)`` uint8, RGB, at least one pixel.

    Raises:
        ImageError: The frame is not such an array, or exceeds a limit of `flowedge.runtime.device.limits`.
    """
    if not isinstance(frame, np.ndarray):
        raise ImageError(
            f"a frame must be a NumPy array (H, W, 3) uint8 in RGB, got {type(frame).__name__}. "
            "Convert it with numpy.asarray."
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise ImageError(
            f"a frame must be (H, W, 3) uint8 in RGB with at least one pixel, got {frame.shape} {frame.dtype}. "
            "Repeat a grey channel three times, drop alpha, and scale to 0..255, or declare the levels of deeper "
            "frames with --set pixel_range=LOW,HIGH (flowedge export or calibrate)."
        )
    check_frame_size(*frame.shape[:2])


class _Scratch(threading.local):
    """Arrays that each thread uses again for the next frame, because new memory costs as much as the products."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """Return an array of any content, which belongs to the caller until it asks for the name again."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape:
            kept = np.empty(shape, dtype)
            if kept.nbytes <= _MOST_KEPT_BYTES:
                self._kept[name] = kept
        return kept


class Preprocessor:
    """Change the borders of frames, resize, crop and normalise them. Threads may share one.

    The matrices of the last few frame sizes are kept, so a stream of equal frames computes them once. The
    work is done in strips that fit in the cache.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._frame_steps, self._grayscale = preprocessing.frame_steps, preprocessing.grayscale
        # What is left to do with a frame whose borders are changed.
        self._preprocessing = msgspec.structs.replace(preprocessing, frame_steps=())
        self._mean = np.array(preprocessing.mean, np.float32)[:, None, None]
        self._std = np.array(preprocessing.std, np.float32)[:, None, None]
        self._scratch = _Scratch()
        self._float_matrices = lru_cache(maxsize=_SIZES_KEPT)(self._make_float_matrices)
        self._pil_matrices = lru_cache(maxsize=_SIZES_KEPT)(self._make_pil_matrices)

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Make the network's input of a frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB, of any size. The frame is not modified.

        Returns:
            ``(3, h, w)`` float32, normalised RGB, C-contiguous, owned by the caller. The size is the crop's or
            the resize's. With ``keep_aspect`` and no crop the size depends on the frame's aspect.

        Raises:
            ImageError: The frame's type or shape is wrong, or the frame is too elongated for the resize.
        """
        check_frame(frame)
        if self._frame_steps:
            frame = framing(self._frame_steps, frame.shape[:2]).apply(frame)
        planes = self._METHODS[self._preprocessing.method](self, frame)
        planes /= np.float32(255)
        if self._grayscale:
            planes[:] = np.tensordot(GREY_WEIGHTS, planes, 1)
        planes -= self._mean
        planes /= self._std
        return planes

    def _float(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize with antialiasing in float32, as torchvision resizes a float tensor, to ``(3, h, w)`` in 0..255."""
        height, width, _ = frame.shape
        strips, columns = self._float_matrices((height, width))
        if not strips:
            return _planes(frame)
        flat = frame.reshape(height, width * 3)
        lower = self._scratch.array("lower", (3, strips[-1][0].stop, width), np.float32)
        for outputs, inputs, rows in strips:
            strip = rows @ flat[inputs].astype(np.float32)
            cv2.split(strip.reshape(-1, width, 3), tuple(lower[:, outputs]))
        planes = np.empty((3, lower.shape[1], columns.shape[0]), np.float32)
        columns.along_rows(lower.reshape(-1, width), planes.reshape(-1, columns.shape[0]))
        return planes

    def _pil(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize like PIL to the last grey level: two passes, in PIL's order, with rounding in between."""
        size = frame.shape[:2]
        rows, columns = self._pil_matrices(size)
        if not rows and columns is None:
            return _planes(frame)
        levels = np.empty((size[0], 3, size[1]), np.uint8)
        cv2.split(frame, tuple(levels[:, channel] for channel in range(3)))
        if pil_resizes_rows_first(size, placement(self._preprocessing, size).resized):
            levels = self._resize_along_x(columns, self._resize_along_y(rows, levels))
        else:
            levels = self._resize_along_y(rows, self._resize_along_x(columns, levels))
        return levels.transpose(1, 0, 2).astype(np.float32, order="C")

    def _resize_along_y(self, strips: list[_Strip], levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize ``(H, 3, W)`` grey levels to ``(h, 3, W)``. Without strips the height stays."""
        if not strips:
            return levels
        flat = levels.reshape(len(levels), -1)
        result = np.empty((strips[-1][0].stop, flat.shape[1]), np.uint8)
        for outputs, inputs, rows in strips:
            _round_to_levels(rows @ flat[inputs], result[outputs])
        return result.reshape(len(result), 3, -1)

    def _resize_along_x(self, columns: BandedMatrix | None, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize ``(H, 3, W)`` grey levels to ``(H, 3, w)``. Without a matrix the width stays."""
        if columns is None:
            return levels
        flat = levels.reshape(-1, levels.shape[2])
        result = np.empty((len(flat), columns.shape[0]), np.uint8)
        at_once = min(len(flat), -(-_STRIP_PIXELS // max(flat.shape[1], columns.shape[0])))
        exact = self._scratch.array("exact", (at_once, flat.shape[1]), np.float64)
        resized = self._scratch.array("resized", (at_once, columns.shape[0]), np.float64)
        for first in range(0, len(flat), at_once):
            strip = flat[first : first + at_once]
            np.copyto(exact[: len(strip)], strip)
            columns.along_rows(exact[: len(strip)], resized[: len(strip)])
            _round_to_levels(resized[: len(strip)], result[first : first + at_once])
        return result.reshape(len(levels), 3, -1)

    def _cv2_bilinear(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Resize by OpenCV's INTER_LINEAR, which does not antialias. Then crop, with black outside of the image."""
        place = placement(self._preprocessing, frame.shape[:2])
        resized = cv2.resize(frame, place.resized[::-1], interpolation=cv2.INTER_LINEAR)
        height, width = place.window
        inside = resized[max(place.top, 0) : place.top + height, max(place.left, 0) : place.left + width]
        window = np.zeros((height, width, 3), np.uint8)
        window[max(-place.top, 0) :, max(-place.left, 0) :][: len(inside), : inside.shape[1]] = inside
        return _planes(window)

    def _make_float_matrices(self, frame: Size) -> tuple[list[_Strip], BandedMatrix]:
        """Return the strips of rows, and one matrix for the columns.

        There is no strip for frames of the network's own size, which are taken as they are.
        """
        rows, columns = (matrix.astype(np.float32) for matrix in input_matrices(self._preprocessing, frame))
        # A product with 1 and zeros is exact, so the answer is the same to the last bit.
        if _is_identity(rows) and _is_identity(columns):
            return [], BandedMatrix(columns)
        return _strips(rows, outputs_at_once=4), BandedMatrix(columns, outputs_at_once=16)

    def _make_pil_matrices(self, frame: Size) -> tuple[list[_Strip], BandedMatrix | None]:
        """Return the strips of rows and the matrix of the columns, in units of a grey level.

        There is no strip, and no matrix, where nothing changes along the axis.
        """
        rows, columns = (
            np.ldexp(pil_fixed_point(matrix), -PIL_FRACTION_BITS)
            for matrix in input_matrices(self._preprocessing, frame)
        )
        return (
            [] if _is_identity(rows) else _strips(rows, outputs_at_once=8),
            None if _is_identity(columns) else BandedMatrix(columns, outputs_at_once=8),
        )

    _METHODS: ClassVar[
        Mapping[ResizeMethod, Callable[[Preprocessor, NDArray[np.uint8]], NDArray[np.float32]]]
    ] = {  # pyright: ignore[reportAssignmentType]
        "float_bilinear": _float,
        "float_bicubic": _float,
        "pil_bilinear": _pil,
        "pil_lanczos": _pil,
        "cv2_bilinear": _cv2_bilinear,
    }


def _strips(rows: NDArray[Any], *, outputs_at_once: int) -> list[_Strip]:
    """Cut a matrix into strips of outputs whose products stay in the cache."""
    return [
        (outputs, inputs, BandedMatrix(weights, outputs_at_once=outputs_at_once))
        for outputs, inputs, weights in BandedMatrix(rows, outputs_at_once=_STRIP_ROWS).bands
    ]


def _round_to_levels(exact: NDArray[np.float64], levels: NDArray[np.uint8]) -> None:
    """Round multiples of ``2 ** -PIL_FRACTION_BITS`` to whole grey levels, halves up, clipped to 0..255.

    OpenCV saturates, but rounds halves to even: half of the grid's step moves them, and nothing else, up.
    """
    up = 2.0 ** -(PIL_FRACTION_BITS + 1)
    cv2.add(exact, up, dst=levels, dtype=cv2.CV_8U)  # type: ignore[call-overload]  # takes a scalar


def _is_identity(matrix: NDArray[Any]) -> bool:
    return np.array_equal(matrix, np.eye(*matrix.shape))


def _planes(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return ``(h, w, 3)`` grey levels as ``(3, h, w)`` float32, still in 0..255."""
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for number, channel in enumerate(cv2.split(image)):
        planes[number] = channel
    return planes
