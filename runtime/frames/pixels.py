"""Make 8-bit RGB pixels of what a program has: an array, the path of a file, or a PIL image."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence, Set, ValuesView
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowedge.errors import ImageError
from flowedge.runtime.device.limits import check_frame_size
from flowedge.runtime.frames.decoders.pillow import rgb_of
from flowedge.runtime.frames.images import in_8_bits_of_file, read_image
from flowedge.runtime.frames.pixel_range import PixelRange, in_8_bits, is_deep

Color: TypeAlias = Literal["rgb", "bgr", "gray"]
"""The channels of an array: red first, blue first as OpenCV reads them, or grey levels alone."""

Given: TypeAlias = NDArray[Any] | str | PathLike[str] | Image.Image
"""A frame as a program has it: an array, the path of an image file, or a PIL image."""

_DEEP_MODES: Final = ("I", "F")
_ORIENTATION: Final = 274  # the tag of a TIFF file
_LIBRARIES: Final = {
    "torch": "Give tensor.cpu().numpy(), after tensor.permute(1, 2, 0) where the channels come first.",
    "tensorflow": "Give tensor.numpy().",
    "cupy": "Give array.get().",
    "jax": "Give numpy.asarray(array).",
    "jaxlib": "Give numpy.asarray(array).",
    "cv2": "Give matrix.get().",
}


def check_color(color: str) -> None:
    """Check the name of the channels.

    Raises:
        ValueError: The name is another one than those of ``Color``.
    """
    if color not in get_args(Color):
        raise ValueError(f'color must be "rgb", "bgr" or "gray", got {color!r}')


def pixels_of(
    given: Given, *, color: Color = "rgb", pixel_range: PixelRange | None = None
) -> NDArray[np.uint8]:
    """Return the pixels of a frame as 8-bit RGB.

    A file is read by `read_image`. A PIL image becomes ``convert("RGB")`` of itself, which gives the pixels that its
    file gives. PIL does not notice every missing part of a damaged file, and keeps 8 of 16 bits of a colour PNG. The
    path is therefore the safer argument.

    Args:
        given: ``(H, W, 3)`` uint8, or ``(H, W)`` or ``(H, W, 1)`` uint8 with ``color="gray"``. With a ``pixel_range``
            also other integers and floating point, ``(H, W)`` or ``(H, W, 3)``. Or a path or a PIL image.
        color: The channels of an array. Files and PIL images know their own.
        pixel_range: The levels that become 0 and 255 in frames of more than 8 bits.

    Returns:
        ``(H, W, 3)`` uint8, RGB. The array is ``given`` itself where nothing had to change.

    Raises:
        ImageError: The frame is of another type or shape, exceeds a limit, or cannot be read.

    Examples:
        >>> import numpy as np
        >>> pixels_of(np.array([[7, 8]], np.uint8), color="gray").tolist()
        [[[7, 7, 7], [8, 8, 8]]]
        >>> pixels_of(np.array([[[1, 2, 3]]], np.uint8), color="bgr").tolist()
        [[[3, 2, 1]]]
    """
    if isinstance(given, np.ndarray):
        return _of_array(given, color, pixel_range)
    if isinstance(given, Image.Image):
        return _of_pillow(given, pixel_range)
    if isinstance(given, str | PathLike):
        if "\0" in fspath(given):
            raise ImageError(
                f"{fspath(given)!r} is no path of a file: it holds a zero character. Check the name."
            )
        return read_image(Path(fspath(given)), pixel_range)
    raise ImageError(f"a frame must be an array, a path or a PIL image, got {_problem(given)}")


def several(
    frames: object, *, color: Color = "rgb", pixel_range: PixelRange | None = None
) -> ImageError | None:
    """Return the error of an argument that is no list of frames, or None where it is one.

    A single frame is not taken for a list of its rows.
    """
    if isinstance(frames, np.ndarray) and frames.ndim != 4 and frames.shape[:1] != (0,):
        # Each row of one colour frame has the shape of a grey frame.
        is_one_frame = frames.ndim < 3 or (frames.ndim == 3 and frames.shape[2] in (1, 3, 4))
        has_grey_frames = color == "gray" or (pixel_range is not None and is_deep(frames[0]))
        if is_one_frame or not has_grey_frames:
            return ImageError(
                f"frames must be a list of frames or an array (N, H, W, 3), got an array {frames.shape} "
                f"{frames.dtype}. Put a single frame into a list, or call the detector with it. Grey frames "
                '(N, H, W) need color="gray", and an array of paths becomes a list with tolist().'
            )
    if isinstance(frames, str | PathLike | Image.Image):
        return ImageError(
            f"frames must be a list of frames, got a single {type(frames).__name__}. "
            "Put it into a list, or call the detector with it."
        )
    if isinstance(frames, Sequence | np.ndarray) and not isinstance(frames, bytes | bytearray | memoryview):
        return None
    what = _problem(frames)
    if isinstance(frames, Mapping):
        what = f"{type(frames).__name__}. Give list(frames.values())."
    elif isinstance(frames, Set | Generator | ValuesView):
        what = f"{type(frames).__name__}. Give list(frames)."
    return ImageError(f"frames must be a list of frames or an array (N, H, W, 3), got {what}")


def _of_array(frame: NDArray[Any], color: Color, pixel_range: PixelRange | None) -> NDArray[np.uint8]:
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[..., 0]
    is_declared = pixel_range is not None and is_deep(frame)
    if not is_declared and (problem := _array_problem(frame, color)):
        raise ImageError(
            f"a frame must be (H, W, 3) uint8 in RGB with at least one pixel, got {frame.shape} {frame.dtype}. "
            f"{problem}"
        )
    if color == "gray" and frame.ndim == 3:
        raise ImageError(
            f'a frame with color="gray" must be (H, W) or (H, W, 1), got {frame.shape} {frame.dtype}. '
            'Leave color out for RGB, or say color="bgr".'
        )
    check_frame_size(*frame.shape[:2])
    if is_declared and pixel_range is not None:
        frame = in_8_bits(frame, pixel_range)
    if frame.ndim == 2:
        return np.repeat(frame[..., None], 3, axis=2)
    if color == "bgr":
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_BGR2RGB), np.uint8)
    return frame


def _array_problem(frame: NDArray[Any], color: Color) -> str:
    """Return what to do with an array that is no frame of 8 bits. The text is empty for a frame."""
    if frame.size == 0:
        return "The array is empty. Check the camera or the crop."
    if frame.ndim == 4:
        return "Give several frames to detector.detect_batch."
    if frame.ndim == 3 and frame.shape[2] == 4:
        return 'Drop alpha: give frame[..., :3], with color="bgr" for a frame of OpenCV.'
    if frame.ndim == 3 and frame.shape[2] != 3 and frame.shape[0] in (1, 3, 4):
        return "The channels come first: give frame.transpose(1, 2, 0)."
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
        return 'Give (H, W, 3) in RGB, or (H, W) with color="gray".'
    if frame.dtype == np.uint8:
        return "" if frame.ndim == 3 or color == "gray" else 'A grey frame needs color="gray".'
    if frame.dtype == np.bool_:
        return "Give frame.astype(numpy.uint8) * 255."
    return (
        "Scale the levels to 0..255 as the training did and convert them to uint8, or declare the levels of deeper "
        "frames with --set pixel_range=LOW,HIGH (flowedge export or calibrate)."
    )


def _of_pillow(image: Image.Image, pixel_range: PixelRange | None) -> NDArray[np.uint8]:
    check_frame_size(image.height, image.width)
    # Before it decodes, an image of a file tells how the samples lie in the file.
    tiles = str(getattr(image, "tile", ""))
    if ";16" in tiles and not _is_deep_mode(image):
        raise ImageError(
            f"a PIL image of mode {image.mode} holds 8 of the 16 bits of its file. Give the path of the file."
        )
    # Pillow maps some uncompressed files into memory with the sides of the turned picture, which mixes up their rows.
    if "'raw'" in tiles and getattr(image, "tag_v2", {}).get(_ORIENTATION, 1) != 1:
        raise ImageError("a PIL image of a turned TIFF file may be wrong. Give the path of the file.")
    try:
        if _is_deep_mode(image):
            return in_8_bits_of_file("a PIL image", np.asarray(image), pixel_range)
        return rgb_of(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"a PIL image cannot be decoded: {error}. Check its file.") from error


def _is_deep_mode(image: Image.Image) -> bool:
    return image.mode.split(";")[0] in _DEEP_MODES


def _problem(given: object) -> str:
    """Describe an object that is no frame, and what to give in its place."""
    if given is None:
        return (
            "None. cv2.imread returns None for a file that it cannot read: check its path, or give the path to the "
            "detector, which then says what is wrong with the file."
        )
    kind = type(given)
    name = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
    for library, advice in _LIBRARIES.items():
        if kind.__module__.split(".")[0] == library:
            return f"{name}. {advice}"
    if isinstance(given, bytes | bytearray | memoryview):
        return f"{kind.__name__}. Give PIL.Image.open(io.BytesIO(data)), or the path of the file."
    if hasattr(given, "read"):
        return f"an open file ({kind.__name__}). Give its path, or PIL.Image.open(file)."
    if isinstance(given, list | tuple):
        return f"a {kind.__name__}. Give several frames to detector.detect_batch, and nested levels as numpy.asarray."
    return f"{kind.__name__}. Give a NumPy array (H, W, 3) uint8 in RGB, a path or a PIL image."
