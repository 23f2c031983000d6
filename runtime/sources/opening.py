"""Define what a source is opened with, and the frames that all sources make alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.clock import utc_moment
from flowedge.errors import ImageError
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.events import Seen, Tell, ignore, nothing_seen
from flowedge.runtime.sources.settings import Channels, SourceSettings
from flowedge.text import printable

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The values that a source is opened with.

    Attributes:
        settings: The settings.
        name: The name of the source in records, without a password.
        window: The levels that become 0 and 255 in frames of more than 8 bits, of the settings or of the bundle.
        tell: Takes the events of the source.
        seen: Returns True for a file that was judged before.
    """

    settings: SourceSettings
    name: str
    window: PixelRange | None = None
    tell: Tell = ignore
    seen: Seen = nothing_seen

    def frame(
        self,
        frame_id: str,
        pixels: Callable[[], tuple[NDArray[Any], Channels]],
        *,
        monotonic_ns: int,
        dropped_before: int = 0,
        version: str = "",
    ) -> Frame:
        """Make a frame, with a problem where its pixels cannot be made or are not what is declared.

        Args:
            frame_id: The id of the frame, with which the text of a problem begins.
            pixels: Gives an array and the channels that the source declares for it, or raises `ImageError`.
            monotonic_ns: The time of capture.
            dropped_before: The number of frames that were lost before this one.
            version: The state of the file that the frame is from.
        """
        problem = ""
        try:
            array, own = pixels()
            rgb = rgb_of(array, own, self.settings.color, self.window)
        except ImageError as error:
            rgb, problem = np.zeros((0, 0, 3), np.uint8), f"{frame_id} {error}"
        except Exception as error:
            # A frame that was taken gets its record, also where a library fails on it as nobody expects.
            _LOG.exception("the pixels of %s cannot be made", printable(frame_id))
            rgb, problem = np.zeros((0, 0, 3), np.uint8), f"{frame_id} cannot be read: {unexpected(error)}"
        return Frame(
            pixels=rgb,
            id=frame_id,
            time=utc_moment(),
            source=self.name,
            problem=problem,
            monotonic_ns=monotonic_ns,
            dropped_before=dropped_before,
            version=version,
        )


def unexpected(error: Exception) -> str:
    """Name an error that is no `ImageError`, for the problem of a frame."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
