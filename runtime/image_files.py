"""A source of frames that reads image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

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
            try:
                pixels, problem = read_image(path, self._pixel_range), ""
            except ImageError as error:
                pixels, problem = np.zeros((0, 0, 3), np.uint8), str(error)
            time = datetime.now(timezone.utc)
            yield Frame(pixels=pixels, id=str(path), time=time, source=str(path.parent), problem=problem)

    def close(self) -> None:
        """Do nothing, since no file stays open."""
