"""Estimate how long the planning of lower precisions takes, from the time of one frame in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowedge.calibration.precision.converted_graph import ConvertedPrecision
from flowedge.progress import duration

_PROBES: Final = 8  # Frames for measuring a block's sensitivity.
_BLOCK_SHARE: Final = 0.5  # A block alone runs half of the graph on average.
# A frame takes twice as long in a candidate or in a gate, because nothing is fused across blocks and maps are compared.
_FRAME_SHARE: Final = 2.0
_WORTH_TELLING: Final = 30.0  # Seconds. A shorter planning is over before anyone reads a sentence about it.


def time_of_planning(
    seconds: float, precisions: Sequence[ConvertedPrecision], *, images: int, frames: int, blocks: int
) -> str | None:
    """Return a sentence about the time that planning takes where every candidate passes, or None for a short time.

    Args:
        seconds: The time of one frame in the fp32 graph, in seconds.
        precisions: The precisions to plan.
        images: The number of good images, on which each graph is calibrated.
        frames: The number of frames that the gate compares.
        blocks: The number of blocks of INT8.
    """
    calls = len(precisions) * (images + 2 * frames) * _FRAME_SHARE
    if any(name.startswith("int8") for name in precisions):
        calls += blocks * min(_PROBES, frames) * _BLOCK_SHARE
    left = calls * seconds
    if left < _WORTH_TELLING:
        return None
    names = ", ".join(precisions)
    return f"Planning {names} takes about {duration(left)} from here, and more where blocks have to return to float."
