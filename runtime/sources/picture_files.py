"""Read a frame from an image file by what the settings declare."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.frames.images import read_image, read_picture
from flowedge.runtime.image_files import frame_of_file
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.opening import Opening, unexpected
from flowedge.text import printable

_LOG: Final = logging.getLogger(__name__)


def read_frame(path: Path, opening: Opening) -> Frame:
    """Read a file. The frame has a problem where the file cannot be read or is not what is declared."""
    return frame_of_file(path, partial(_pixels_or_problem, opening), opening.settings.name)


def _pixels_or_problem(opening: Opening, path: Path) -> NDArray[np.uint8]:
    try:
        return _pixels(opening, path)
    except ImageError:
        raise
    except Exception as error:
        # One file that a library fails on, as nobody expects, would otherwise stop the whole folder.
        _LOG.exception("%s cannot be read", printable(str(path)))
        raise ImageError(f"{path} cannot be read: {unexpected(error)}") from error


def _pixels(opening: Opening, path: Path) -> NDArray[np.uint8]:
    declared = opening.settings.color
    if not declared:
        return read_image(path, opening.window)
    picture = read_picture(path)
    try:
        return rgb_of(picture, "rgb", declared, opening.window)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
