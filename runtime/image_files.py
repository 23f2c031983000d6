"""A source of frames that reads image files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.clock import utc_moment
from flowedge.errors import ImageError
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.protocols import Frame


class ImageFiles:
    """Image files as a source of frames, one after the other in the order given."""

    def __init__(self, images: Sequence[Path], pixel_range: PixelRange | None = None) -> None:
        """Name the files. Each is opened when its turn comes.

        Args:
            images: The files.
            pixel_range: The levels of images of more than 8 bits that become 0 and 255, see
                `flowedge.runtime.frames.images.read_image`.
        """
        self._images = images
        self._pixel_range = pixel_range

    def frames(self) -> Iterator[Frame]:
        """Read the files one by one. A file that cannot be read gives a frame with a problem."""
        for path in self._images:
            yield frame_of_file(path, lambda path: read_image(path, self._pixel_range))

    def close(self) -> None:
        """Do nothing, since no file stays open."""


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
