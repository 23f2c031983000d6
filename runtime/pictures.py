"""A sink that writes the pictures of each inspection into a folder: the findings, and the mask where there is one."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from flowedge.errors import ImageError
from flowedge.runtime.frames.finding import PICTURES
from flowedge.runtime.protocols import Frame
from flowedge.runtime.record import Inspection
from flowedge.runtime.render import Style, draw, write_png
from flowedge.runtime.result import Result
from flowedge.text import printable

_LONGEST_NAME: Final = 255  # bytes of a file's name on Linux


class PictureFolder:
    """A folder of pictures. A new picture of an image takes the place of an old one, and no old one stays."""

    def __init__(self, folder: Path, images: Sequence[Path] = (), *, style: Style = "overlay") -> None:
        """Name the folder, which is made with the first picture.

        Args:
            folder: The folder of ``NAME.overlay.png`` and, with a threshold for pixels, ``NAME.mask.png``. A name that
                leaves no room for these ends is shortened.
            images: The files that frames will come from. The names of the pictures are those of the files without
                their common folder. A frame of a video or a camera has the name of `frame_name`.
            style: The style of ``NAME.overlay.png``, see `flowedge.runtime.render.draw`. ``NAME.mask.png`` has the
                frame's size, 255 for an anomalous pixel and 0 elsewhere, in every style.
        """
        self._folder = folder
        self._style: Style = style
        self._targets = {
            str(path): folder / name for path, name in zip(images, relative_names(images), strict=True)
        }

    def put(self, frame: Frame, record: Inspection, result: Result | None) -> Inspection:
        """Write the pictures of a frame, or remove those of an earlier run where the frame could not be read.

        Returns:
            The record with the names of the pictures. Where a picture cannot be written or removed, the record has a
            ``problem`` and keeps its verdict.

        Raises:
            ImageError: The folder cannot be made.
        """
        target = self._targets.get(frame.id) or self._folder / frame_name(frame.id)
        if result is None:
            return _with_problems(record, _remove_pictures(target))
        # The folder is made with the first picture. Where it cannot be made, no image has pictures.
        _make(self._folder)
        heat, marked = (_picture(target, kind) for kind in PICTURES)
        try:
            _make(target.parent)
            write_png(heat, draw(result, style=self._style))
            if result.mask is not None:
                write_png(marked, result.mask.astype(np.uint8) * np.uint8(255))
        except ImageError as error:
            # A picture of an earlier run beside this verdict would mislead.
            return _with_problems(record, [printable(str(error)), *_remove_pictures(target)])
        if result.mask is None:
            record = _with_problems(record, _remove_pictures(target, PICTURES[1:]))
        return msgspec.structs.replace(
            record,
            overlay=printable(str(heat)),
            mask=None if result.mask is None else printable(str(marked)),
        )

    def close(self) -> None:
        """Do nothing, since every picture is whole when `put` returns."""


def frame_name(frame_id: str) -> str:
    """Return the name of a file for a frame of a video or a camera, whose id ends in ``#`` and its number.

    Only letters, digits and a few signs of the last part of the id come into the name, so that it leads to no other
    folder.

    Examples:
        >>> frame_name("videos/line 1.mp4#12")
        'line_1.mp4-000012'
    """
    name, _, number = frame_id.rpartition("#")
    last = re.sub(r"[^\w.-]", "_", (name or number).rstrip("/").rpartition("/")[2]).lstrip(".")
    if not name or not number.isascii() or not number.isdigit():
        return last or "frame"
    return f"{last or 'frame'}-{number:0>6}"


def relative_names(images: Sequence[Path]) -> list[Path]:
    """Return a relative name for each image that no other image has."""
    if not images:
        return []
    # A link keeps its own name, so that two links to one file are two images.
    place_of = functools.cache(os.path.realpath)
    absolute = [Path(place_of(path.parent), path.name) for path in images]
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(root) for path in absolute]


def _with_problems(record: Inspection, problems: Sequence[str]) -> Inspection:
    return msgspec.structs.replace(record, problem=" ".join(filter(None, (record.problem, *problems))))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder} cannot be made: {error.strerror}. Name another --out.") from error


def _picture(target: Path, kind: str) -> Path:
    """Return where a picture of an image goes. A name without room for its end keeps its beginning and a hash."""
    name = os.fsencode(target.name)
    if len(name) + len(kind) > _LONGEST_NAME:
        mark = f"~{hashlib.sha256(name).hexdigest()[:16]}"
        # Half of a character may be left at the cut, which is no text.
        kept = name[: _LONGEST_NAME - len(kind) - len(mark)].decode("utf-8", "ignore")
        return target.with_name(f"{kept}{mark}{kind}")
    return target.with_name(target.name + kind)


def _remove_pictures(target: Path, kinds: Sequence[str] = PICTURES) -> list[str]:
    """Remove the pictures of an earlier run, which do not belong to the image now, and return the problems."""
    problems: list[str] = []
    for kind in kinds:
        picture = _picture(target, kind)
        try:
            # A read-only file system refuses to remove even what is not there.
            if os.path.lexists(picture):
                picture.unlink(missing_ok=True)
        except OSError as error:
            problems.append(
                f"{printable(str(picture))} is of an earlier run and cannot be removed: {error.strerror}."
            )
    return problems
