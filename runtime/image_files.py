"""A source of frames that reads image files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.clock import utc_moment
from flowedge.errors import ImageError
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.lanes import in_order
from flowedge.runtime.protocols import Frame

DecodeNoted: TypeAlias = Callable[[bytes], tuple[NDArray[np.uint8], str]]
"""A function from a JPEG file to ``(H, W, 3)`` uint8, RGB, and the sentence for `Frame.decoder`, which may be empty."""

_EXPANSION: Final = 16  # bytes of pixels for a byte of a compressed file, about twice what is usual


class ImageFiles:
    """Image files as a source of frames, one after the other in the order given."""

    def __init__(
        self,
        images: Sequence[Path],
        pixel_range: PixelRange | None = None,
        *,
        readers: int = 1,
        decode_jpeg: DecodeNoted | None = None,
    ) -> None:
        """Name the files. Each is opened when its turn comes.

        Args:
            images: The files.
            pixel_range: The levels of images of more than 8 bits that become 0 and 255, see
                `flowedge.runtime.frames.images.read_image`.
            readers: The number of threads that read and decode. With more than 1, a few files are read ahead.
            decode_jpeg: Decodes JPEG files in place of libjpeg-turbo.
        """
        self._images, self._readers = images, readers
        self._pixel_range, self._decode_jpeg = pixel_range, decode_jpeg

    def frames(self) -> Iterator[Frame]:
        """Read the files in their order. A file that cannot be read gives a frame with a problem."""
        return in_order(
            self._frame,
            self._images,
            lanes=self._readers,
            size=_likely_bytes,
        )

    def _frame(self, path: Path) -> Frame:
        decode_noted, note = self._decode_jpeg, ""

        def decode(data: bytes) -> NDArray[np.uint8]:
            nonlocal note
            assert decode_noted is not None
            pixels, note = decode_noted(data)
            return pixels

        decode_jpeg = None if decode_noted is None else decode
        frame = frame_of_file(path, lambda path: read_image(path, self._pixel_range, decode_jpeg))
        return replace(frame, decoder=note) if note else frame

    def close(self) -> None:
        """Do nothing, since no file stays open."""


def _likely_bytes(path: Path) -> int:
    """Guess the bytes of a file's pixels, so that few large pictures are decoded at once."""
    with contextlib.suppress(OSError):
        return _EXPANSION * path.stat().st_size
    return 0


def frame_of_file(path: Path, read: Callable[[Path], NDArray[np.uint8]], source: str | None = None) -> Frame:
    """Read a file into a frame. A file that cannot be read gives a frame with a problem.

    Args:
        path: The file.
        read: Reads the file, or raises `ImageError`.
        source: The name of the source. By default the folder.
    """
    version, begun = version_of(path), time.monotonic_ns()
    try:
        pixels, problem = read(path), ""
    except ImageError as error:
        pixels, problem = np.zeros((0, 0, 3), np.uint8), str(error)
    return Frame(
        pixels=pixels,
        id=str(path),
        time=utc_moment(),
        source=source or str(path.parent),
        problem=problem,
        monotonic_ns=begun,
        version=version,
    )


def version_of(path: Path) -> str:
    """Return the size of a file and the time of its last change as a text, which is empty where the file is gone."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{state.st_size}-{state.st_mtime_ns}"
