"""Take frames from image files: one image, a pattern, or a folder once or as it fills."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowedge.runtime.frames.finding import find_images
from flowedge.runtime.image_files import version_of
from flowedge.runtime.protocols import Frame, Source
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.picture_files import read_frame
from flowedge.runtime.sources.watched import WatchedFolder


def open_it(opening: Opening) -> Source:
    """Open the images that an address stands for.

    Raises:
        DataError: The address stands for no image.
        SourceError: The address to watch is no folder.
    """
    settings = opening.settings
    if settings.watch:
        return WatchedFolder(Path(settings.address), opening)
    return Images(find_images(settings.address, recursive=settings.recursive).images, opening)


class Images:
    """Image files as a source of frames, one after the other in the order given."""

    def __init__(self, images: Sequence[Path], opening: Opening) -> None:
        self._images = images
        self._opening = opening
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """Read the files one by one. A file that cannot be read gives a frame with a problem."""
        for path in self._images:
            if self._closed.is_set():
                return
            if not self._opening.seen(str(path), version_of(path)):
                yield read_frame(path, self._opening)

    def close(self) -> None:
        """End an iteration before the next file."""
        self._closed.set()
