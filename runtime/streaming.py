"""Inspect the frames of a source as they come, for a program that loops over them."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, Final, cast

from flowedge.errors import ImageError, SourceError
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.protocols import Frame, Inspects, Source
from flowedge.runtime.result import Result
from flowedge.runtime.settings import Settings

_LOG: Final = logging.getLogger(__name__)


def stream(
    detector: Inspects,
    source: Source | Settings | str | PathLike[str],
    *,
    pixel_range: PixelRange | None = None,
) -> Iterator[tuple[Frame, Result | None]]:
    """Inspect the frames of a source one by one. The source is closed where the iteration ends or is left.

    Args:
        detector: The detector.
        source: An address, settings, or a source that is open, see `flowedge.runtime.detector.Detector.stream`.
        pixel_range: The levels that become 0 and 255 in frames of more than 8 bits.

    Returns:
        Each frame with its result. The result is None for a frame that was not inspected, whose ``problem`` is the
        reason.
    """
    opened = _opened(source, pixel_range)
    with contextlib.closing(opened):
        for frame in opened.frames():
            if frame.problem:
                yield frame, None
                continue
            try:
                result = detector(frame.pixels)
            except ImageError as error:
                yield replace(frame, problem=f"{frame.id}: {error}"), None
            else:
                yield frame, result


def _opened(source: Source | Settings | str | PathLike[str], pixel_range: PixelRange | None) -> Source:
    if not isinstance(source, Settings | str | PathLike):
        if not callable(getattr(source, "frames", None)):
            raise SourceError(
                f"a {type(source).__name__} is no source of frames. Give an address, a path or SourceSettings. "
                "For one frame, call the detector with the frame."
            )
        return source
    # Sources are named by a table of strings, as engines are, so nothing of them is imported before one is opened.
    sources = importlib.import_module("flowedge.runtime.sources")
    address = fspath(source) if isinstance(source, PathLike) else source
    return cast(Source, sources.open_source(address, pixel_range=pixel_range, tell=_log))


def _log(event: Any) -> None:
    """Log a `flowedge.runtime.sources.events.SourceEvent`.

    A loop that waits for a lost camera shows nothing else.
    """
    _LOG.log(logging.INFO if event.kind.endswith("_back") else logging.WARNING, "%s", event.text)
