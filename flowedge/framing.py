"""Change a frame's borders before the resize: centre crops and padding.

Both changes only choose the row and the column that each row and each column of the result is taken from. So the host
and the graph gather rows and columns, and an anomaly map is laid back over the frame by a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.manifest import FrameStep
from flowedge.manifest_bounds import MAX_SIDE

Size: TypeAlias = tuple[int, int]
"""``(height, width)`` in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """The origin of each row and each column of a frame with changed borders.

    Attributes:
        rows: ``[height]`` int64: a row of the frame, or ``-1 - k`` where step k fills.
        columns: ``[width]`` int64: a column of the frame, or ``-1 - k`` where step k fills.
        shift: ``(down, right)``: the place of the frame's first pixel in the changed frame. The shift is negative
            where that pixel is cut off.
        fills: The RGB grey levels that each step fills with.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    shift: Size
    fills: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> Size:
        """Height and width of the changed frame."""
        return len(self.rows), len(self.columns)

    def filled_by(self, step: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return two masks: the rows and the columns that a step fills."""
        return self.rows == -1 - step, self.columns == -1 - step

    def apply(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change the borders of a frame ``(H, W, 3)`` uint8. The result is a copy, ``(height, width, 3)`` uint8."""
        changed = frame[np.maximum(self.rows, 0)][:, np.maximum(self.columns, 0)]
        for step, fill in enumerate(self.fills):
            rows, columns = self.filled_by(step)
            changed[rows] = fill
            changed[:, columns] = fill
        return changed


@lru_cache(maxsize=16)
def framing(steps: Sequence[FrameStep], frame: Size) -> Framing:
    """Follow torchvision's ``CenterCrop`` and ``Pad`` and anomalib's ``SquarePad`` for a frame of this size.

    Args:
        steps: The steps in their order. The sequence must be hashable, such as a tuple.
        frame: Size of the frame.

    Raises:
        ImageError: The changed frame would be larger than `MAX_SIDE`, or a mirrored border wider than the frame.
    """
    axes = [np.arange(length) for length in frame]
    shift = [0, 0]
    for number, step in enumerate(steps):
        borders = _borders(step, (len(axes[0]), len(axes[1])))
        for axis, (before, after) in enumerate(borders):
            axes[axis] = _changed(axes[axis], before, after, step, -1 - number)
            shift[axis] += before
    return Framing(axes[0], axes[1], (shift[0], shift[1]), tuple(step.fill for step in steps))


def _borders(step: FrameStep, frame: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many rows and columns are added before and after. A negative number is cut off."""
    match step.kind:
        case "center_crop":
            assert step.size is not None, "the manifest was checked"
            top, left = (centred(whole, part) for whole, part in zip(frame, step.size, strict=True))
            height, width = step.size
            return (-top, height + top - frame[0]), (-left, width + left - frame[1])
        case "pad":
            before_x, before_y, after_x, after_y = step.border
            return (before_y, after_y), (before_x, after_x)
        case "square_pad":
            missing = [max(frame) - side for side in frame]
            rows, columns = ((one // 2, one - one // 2) for one in missing)
            return rows, columns


def _changed(
    axis: NDArray[np.int64], before: int, after: int, step: FrameStep, filled: int
) -> NDArray[np.int64]:
    length = len(axis)
    if length + before + after > MAX_SIDE:
        raise ImageError(
            f"a frame of {length} pixels along one side would be {length + before + after} with the model's padding. "
            f"The longest side may be {MAX_SIDE}. Cut the frame into pieces."
        )
    narrowest = {"reflect": length - 1, "symmetric": length}.get(step.mode, max(before, after))
    if step.kind == "pad" and max(before, after) > narrowest:
        raise ImageError(
            f"a frame of {length} pixels along one side cannot be padded with {max(before, after)} mirrored ones, as "
            "the model's preprocessing does. Give larger frames."
        )
    # Borders may be cut off on one side and added on the other, so both are handled for every step.
    kept = axis[max(-before, 0) : length - max(-after, 0)]
    added = (max(before, 0), max(after, 0))
    if step.mode == "constant":
        return np.pad(kept, added, constant_values=filled)
    return np.pad(kept, added, mode=step.mode)


def centred(whole: int, part: int) -> int:
    """Return the start of a centred part. Halves round to even, and a larger part sticks out less on this side."""
    return round((whole - part) / 2) if part <= whole else -((part - whole) // 2)
