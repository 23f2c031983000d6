"""Recognise frames that must not be judged: repeated, stale, dark and saturated ones."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.protocols import Frame
from flowedge.runtime.station.watch.settings import WatchSettings

_ROWS: Final = 32  # that are compared first
_DARK: Final = 4  # grey level at and below which a pixel is dark
_BRIGHT: Final = 251  # grey level at and above which a pixel is bright
_MOST_SOURCES: Final = 8  # whose last frames are kept
_MOST: Final = 0.99  # of the pixels that may be dark, or bright


class FrameGate:
    """Checks each frame before inference. One thread calls it, in the order of the frames.

    The ranges of the calibration are checked by `flowedge.runtime.frames.frame_check`, as a part of the detector.
    """

    def __init__(self, settings: WatchSettings) -> None:
        """Take the settings. No frame has been seen yet."""
        self._settings = settings
        self._last: dict[str, _Last] = {}

    def __call__(self, frame: Frame, pixels: NDArray[np.uint8], *, has_ranges: bool) -> str:
        """Return the reason why a frame must not be judged, as a clause, or an empty string.

        Args:
            frame: The frame as its source gave it.
            pixels: ``(H, W, 3)`` uint8, RGB, the pixels that are to be judged.
            has_ranges: True where the bundle has the ranges of good frames, which the detector checks. Without them
                only frames that are black or white nearly everywhere are refused here.
        """
        return self._frozen(frame) or self._stale(frame) or ("" if has_ranges else _without_content(pixels))

    def _frozen(self, frame: Frame) -> str:
        # Each folder of a watched tree is a source of its own, and new ones may come every day.
        last = self._last.pop(frame.source, None) or _Last()
        self._last[frame.source] = last
        if len(self._last) > _MOST_SOURCES:
            del self._last[next(iter(self._last))]
        equal = last.equal_frames(frame.pixels)
        if not self._settings.frozen_frames or equal < self._settings.frozen_frames:
            return ""
        return f"the camera shows the same pixels for the {_ordinal(equal)} time in a row"

    def _stale(self, frame: Frame) -> str:
        # A file shows the same part however long it waits.
        if not self._settings.stale_s or not frame.monotonic_ns or frame.version:
            return ""
        age = (time.monotonic_ns() - frame.monotonic_ns) / 1e9
        if age <= self._settings.stale_s:
            return ""
        return f"the frame is {age:.1f} s old, and stale_s allows {self._settings.stale_s:g} s"


class _Last:
    """The last frame of one source, and the number of frames in a row that are equal to it."""

    def __init__(self) -> None:
        self._pixels: NDArray[Any] | None = None
        self._sample: NDArray[Any] | None = None
        self._equal = 0

    def equal_frames(self, pixels: NDArray[Any]) -> int:
        """Return the length of the run of equal frames that ends with these pixels, 1 for a new frame."""
        sample = _sampled(pixels)
        # Noise tells nearly every frame of a camera from the one before in the sample, so the whole frames are compared
        # only where the samples are equal. Sources give each frame its own array, so the last one can be kept.
        is_equal = (
            self._sample is not None
            and self._pixels is not None
            and self._pixels.dtype == pixels.dtype
            and np.array_equal(self._sample, sample)
            and np.array_equal(self._pixels, pixels)
        )
        self._equal = self._equal + 1 if is_equal else 1
        self._pixels, self._sample = pixels, sample
        return self._equal


def _sampled(pixels: NDArray[Any]) -> NDArray[Any]:
    """Copy whole rows of the pixels, which is quick, at equal distances."""
    return pixels[:: max(1, len(pixels) // _ROWS)].copy()


def _without_content(pixels: NDArray[np.uint8]) -> str:
    sample = _sampled(pixels)
    dark, bright = float((sample <= _DARK).mean()), float((sample >= _BRIGHT).mean())
    if dark > _MOST:
        return f"the frame is too dark: {dark:.1%} of its values are at most {_DARK} of 255"
    if bright > _MOST:
        return f"the frame is saturated: {bright:.1%} of its values are at least {_BRIGHT} of 255"
    return ""


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
