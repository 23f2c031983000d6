"""Read image files to the pixels that PIL's ``Image.open(path).convert("RGB")`` gives.

Files are untrusted: `flowedge.runtime.frames.decoders` checks that a picture is whole and bounds its cost before and
while it is decoded, so that a small file cannot ask for gigabytes and half an image is never taken for a whole one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.files import open_regular_file
from flowedge.runtime.device.limits import MAX_BYTES, MAX_PIXELS
from flowedge.runtime.frames.decoders import DamagedError, DecodeJpeg, RefusedError, decode
from flowedge.runtime.frames.pixel_range import PixelRange, in_8_bits

_LOG: Final = logging.getLogger(__name__)


def read_image(
    path: str | Path, pixel_range: PixelRange | None = None, decode_jpeg: DecodeJpeg | None = None
) -> NDArray[np.uint8]:
    """Read an image file.

    Grey is repeated three times, a palette is looked up, and transparency is dropped without blending. The orientation
    that a camera noted in a JPEG or PNG is not applied, that of a TIFF is. All is as PIL's ``convert("RGB")`` does it,
    to the last grey level.

    Args:
        path: The file.
        pixel_range: The levels of an image of more than 8 bits that become 0 and 255, as `in_8_bits` maps them. Without
            them such an image is refused, since nobody knows which levels the network was trained on.
        decode_jpeg: Decodes JPEG files in place of libjpeg-turbo. Its pixels may then differ from PIL's.

    Returns:
        ``(H, W, 3)`` uint8, RGB, C-contiguous, owned by the caller.

    Raises:
        ImageError: The file is missing, empty, damaged, not whole, beyond a limit of `flowedge.runtime.device.limits`,
            of a format or a variant that is not read, or of more than 8 bits without a ``pixel_range``.
    """
    return image_from_bytes(str(path), read_content(path), pixel_range, decode_jpeg)


def image_from_bytes(
    name: str,
    content: bytes,
    pixel_range: PixelRange | None = None,
    decode_jpeg: DecodeJpeg | None = None,
) -> NDArray[np.uint8]:
    """Decode the content of an image file, as `read_image` decodes a file.

    Args:
        name: The name of the image for messages.
        content: The whole file.
        pixel_range: The levels of an image of more than 8 bits that become 0 and 255.
        decode_jpeg: Decodes JPEG files in place of libjpeg-turbo.

    Returns:
        ``(H, W, 3)`` uint8, RGB, C-contiguous, owned by the caller.

    Raises:
        ImageError: The content is empty, damaged, not whole, beyond a limit, or of a format that is not read.
    """
    picture = picture_from_bytes(name, content, decode_jpeg)
    _LOG.debug("read %s, %s %s", name, picture.shape, picture.dtype)
    return in_8_bits_of_file(name, picture, pixel_range)


def in_8_bits_of_file(name: str, picture: NDArray[Any], pixel_range: PixelRange | None) -> NDArray[np.uint8]:
    """Map the levels of a picture to 8 bits, and leave a picture of 8 bits as it is.

    Args:
        name: The name of the picture for messages.
        picture: ``(H, W, 3)`` uint8, or ``(H, W)`` or ``(H, W, 3)`` in a type of more than 8 bits.
        pixel_range: The levels that become 0 and 255.

    Raises:
        ImageError: The picture has more than 8 bits, and there is no ``pixel_range`` or a level is NaN or infinite.
    """
    if picture.dtype == np.uint8:
        return picture
    if pixel_range is None:
        raise ImageError(
            f"{name} has {picture.dtype} pixels; 8 bits per channel are needed. Declare the levels that the training "
            "images' conversion made 0 and 255 with --set pixel_range=LOW,HIGH (flowedge export or calibrate)."
        )
    try:
        return in_8_bits(picture, pixel_range)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def read_picture(path: str | Path) -> NDArray[Any]:
    """Read an image file with the levels that it has.

    Returns:
        ``(H, W, 3)`` uint8, RGB. For an image of more than 8 bits it is ``(H, W)`` or ``(H, W, 3)`` in its own type.

    Raises:
        ImageError: The file is missing, empty, damaged, beyond a limit, or of a format that is not read.
    """
    return picture_from_bytes(str(path), read_content(path))


def picture_from_bytes(name: str, content: bytes, decode_jpeg: DecodeJpeg | None = None) -> NDArray[Any]:
    """Decode the content of an image file, with the levels that it has.

    Raises:
        ImageError: The content is empty, damaged, not whole, beyond a limit, or of a format that is not read.
    """
    check_content(name, len(content))
    try:
        return decode(content, decode_jpeg)
    except RefusedError as error:
        raise ImageError(f"{name} {error}") from error
    except DamagedError as error:
        raise ImageError(
            f"{name} is damaged: {error}. Copy it again from its source, or remove it."
        ) from error


def check_content(name: str, size: int) -> None:
    """Refuse the content of an image file by its size in bytes.

    Raises:
        ImageError: The content is empty, or larger than any image that is read.
    """
    if size > MAX_BYTES:
        raise ImageError(
            f"{name} has {size / 1e6:.0f} MB, more than an image of {MAX_PIXELS / 1e6:.0f} million pixels needs. "
            "Cut it into pieces."
        )
    if not size:
        raise ImageError(f"{name} is empty. Copy it again from its source, or remove it.")


def read_content(path: str | Path) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: The path is no regular file, or the file cannot be read, is empty or too large.
    """
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= MAX_BYTES else b""
    except FileNotFoundError as error:
        link = f"leads to {os.readlink(path)}, which " if os.path.islink(path) else ""
        raise ImageError(f"{path} {link}does not exist. Check the name.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {_reason(path, error)}.") from error
    check_content(str(path), size)
    return data


def _reason(path: str | Path, error: OSError) -> str:
    """Describe why a path cannot be read, and the next step. A folder that cannot be listed has a text of its own."""
    if isinstance(error, IsADirectoryError):
        if os.path.islink(path):
            return "it is a link to a folder, and such links are not followed. Name the folder itself"
        try:
            os.scandir(path).close()
        except OSError as denied:
            return f"{denied.strerror}. Check its permissions"
    return f"{error.strerror}. Name an image file that may be read"
