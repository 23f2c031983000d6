"""Read a frame from an image file by what the settings declare."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.frames.images import read_image, read_picture
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.opening import Opening


def version_of(path: Path) -> str:
    """Return the size of a file and the time of its last change as a text, which is empty where the file is gone."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{state.st_size}-{state.st_mtime_ns}"


def read_frame(path: Path, opening: Opening) -> Frame:
    """Read a file. The frame has a problem where the file cannot be read or is not what is declared."""
    version, begun = version_of(path), time.monotonic_ns()
    try:
        pixels, problem = _pixels(path, opening), ""
    except ImageError as error:
        pixels, problem = np.zeros((0, 0, 3), np.uint8), str(error)
    return Frame(
        pixels=pixels,
        id=str(path),
        time=datetime.now(timezone.utc),
        source=opening.settings.name or os.fspath(path.parent),
        problem=problem,
        monotonic_ns=begun,
        version=version,
    )


def _pixels(path: Path, opening: Opening) -> NDArray[np.uint8]:
    declared = opening.settings.color
    if not declared:
        return read_image(path, opening.window)
    picture = read_picture(path)
    try:
        return rgb_of(picture, "rgb", declared, opening.window)
    except ImageError as error:
        raise ImageError(f"{path} {error}") from error
