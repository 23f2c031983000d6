"""Define what a source is opened with, and the frames that all sources make alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.protocols import Frame
from flowedge.runtime.sources.channels import rgb_of
from flowedge.runtime.sources.events import Seen, Tell, ignore, nothing_seen
from flowedge.runtime.sources.settings import Channels, SourceSettings


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
        self, array: NDArray[Any], own: Channels, frame_id: str, *, monotonic_ns: int, dropped_before: int = 0
    ) -> Frame:
        """Make a frame of an array. The frame has a problem where the array is not what is declared."""
        try:
            pixels = rgb_of(array, own, self.settings.color, self.window)
        except ImageError as error:
            return self.problem(
                f"{frame_id}: {error}", frame_id, monotonic_ns=monotonic_ns, dropped_before=dropped_before
            )
        return Frame(
            pixels=pixels,
            id=frame_id,
            time=datetime.now(timezone.utc),
            source=self.name,
            monotonic_ns=monotonic_ns,
            dropped_before=dropped_before,
        )

    def problem(
        self, problem: str, frame_id: str, *, monotonic_ns: int = 0, dropped_before: int = 0
    ) -> Frame:
        """Make the frame that stands for one that could not be read."""
        return Frame(
            pixels=np.zeros((0, 0, 3), np.uint8),
            id=frame_id,
            time=datetime.now(timezone.utc),
            source=self.name,
            problem=problem,
            monotonic_ns=monotonic_ns or time.monotonic_ns(),
            dropped_before=dropped_before,
        )
