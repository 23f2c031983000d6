"""Limits of the pictures and frames that are inspected, in every command and in Python."""

from __future__ import annotations

from typing import Final

from flowedge.errors import ImageError

MAX_PIXELS: Final = 100_000_000
"""The most pixels of a picture or a frame: 300 MB as RGB."""

MAX_PICTURE_SIDE: Final = 32_768
"""The longest side of a picture or a frame, in pixels: a resize along it needs memory in proportion."""

MAX_RATIO: Final = 1_024
"""The most times that the longer side of a picture or a frame may be the shorter one."""

MAX_SAMPLE_BYTES: Final = 3 * MAX_PIXELS
"""The most bytes of the samples of a compressed file, with those that are dropped: the largest picture as RGB."""

MAX_BYTES: Final = 4 * MAX_PIXELS + (1 << 20)
"""The largest file that is read: an uncompressed picture of so many pixels with alpha."""


def size_problem(height: int, width: int) -> str | None:
    """Say which limit a size exceeds, as the end of a sentence that begins with its owner, or return None."""
    if height * width > MAX_PIXELS:
        return f"has {width}x{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million. Cut it into pieces."
    if max(height, width) > MAX_PICTURE_SIDE:
        return f"has {width}x{height} pixels; the longest side may be {MAX_PICTURE_SIDE}. Cut it into pieces."
    if max(height, width) > MAX_RATIO * min(height, width):
        return (
            f"has {width}x{height} pixels; the longer side may be {MAX_RATIO} times the shorter one. "
            "Cut it into pieces."
        )
    return None


def check_frame_size(height: int, width: int) -> None:
    """Check the size of a frame.

    Raises:
        ImageError: The frame exceeds a limit.
    """
    problem = size_problem(height, width)
    if problem is not None:
        raise ImageError(f"a frame {problem}")
