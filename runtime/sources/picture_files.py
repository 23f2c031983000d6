"""Read a frame from an image file by what the settings declare."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.frames.images import read_image, read_picture
from flowedge.runtime.image_files import frame_of_file
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.opening import Opening


def read_frame(path: Path, opening: Opening) -> Frame:
    """Read a file. The frame has a problem where the file cannot be read or is not what is declared."""
    return frame_of_file(path, partial(_pixels, opening), opening.settings.name)


def _pixels(opening: Opening, path: Path) -> NDArray[np.uint8]:
    declared = opening.settings.color
    if not declared:
        return read_image(path, opening.window)
    picture = read_picture(path)
    try:
        return rgb_of(picture, "rgb", declared, opening.window)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
