"""Follow boxes of positions through the operators of a network: which inputs an output needs, and what stays right.

A box has a range of rows and a range of columns. Each axis is followed by itself. Positions are always those of the
whole picture, so that the two networks, whole and cropped, name a position by the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Span(NamedTuple):
    """Positions along one axis, from ``start`` up to and without ``end``."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """The number of positions."""
        return self.end - self.start

    def hull(self, other: Span) -> Span:
        """Return the smallest span that holds both."""
        return Span(min(self.start, other.start), max(self.end, other.end))

    def meet(self, other: Span) -> Span:
        """Return the positions of both."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    def holds(self, other: Span) -> bool:
        """True when each position of the other span is in this one."""
        return self.start <= other.start and other.end <= self.end


Box: TypeAlias = tuple[Span, Span]
"""The rows and the columns."""


def hull(one: Box, other: Box) -> Box:
    """Return the smallest box that holds both."""
    return one[0].hull(other[0]), one[1].hull(other[1])


def area(box: Box) -> int:
    """Return the number of positions in a box."""
    return box[0].length * box[1].length


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The window of a convolution, a pooling or a padding along one axis.

    Attributes:
        size: The positions that a window spans.
        stride: The step from one window to the next.
        before: The padding in front of the first position.
        after: The padding behind the last position.
        mirrors: True where the padding repeats positions inside, as reflect padding does.
    """

    size: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    mirrors: bool = False

    def needs(self, wanted: Span, length: int) -> Span:
        """Return the inputs that some outputs need.

        Args:
            wanted: The outputs.
            length: The inputs of the whole picture.
        """
        first = wanted.start * self.stride - self.before
        last = (wanted.end - 1) * self.stride - self.before + self.size
        if self.mirrors:
            # A mirrored position lies as far inside as its copy lies outside.
            inner_last = max(last, 1 - first) if first < 0 else last
            first = min(first, 2 * length - 1 - last) if last > length else first
            # And a padding must be narrower than what it mirrors.
            last = max(inner_last, max(first, 0) + self._depth)
            first = min(first, min(last, length) - self._depth)
        start = min(max(first, 0), length - 1)
        return Span(start, max(min(last, length), start + 1))

    def outputs(self, length: int) -> int:
        """Return the number of outputs for a number of inputs."""
        return (length + self.before + self.after - self.size) // self.stride + 1

    def gives(self, present: Span) -> Span:
        """Return the outputs for the inputs that are present, whose start is a multiple of the stride."""
        start = present.start // self.stride
        return Span(start, start + self.outputs(present.length))

    def right(self, right: Span, present: Span, length: int) -> Span:
        """Return the outputs that are those of the whole picture.

        Args:
            right: The present inputs that are those of the whole picture.
            present: The inputs that are present. Padding in front of them is right only at the picture's border.
            length: The inputs of the whole picture.
        """
        given = self.gives(present)
        start, end = given
        if right.start > 0:
            start = -(-(right.start + self.before) // self.stride)
        elif self.mirrors:
            start = self.before - min(self.before, right.end - 1)
        if right.end < length:
            end = (right.end + self.before - self.size) // self.stride + 1
        elif self.mirrors:
            end = length + self.before + min(self.after, length - 1 - right.start)
        return Span(max(start, given.start), min(end, given.end))

    @property
    def _depth(self) -> int:
        return max(self.before, self.after) + 1


def windows_of(
    kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[Window, Window]:
    """Return the windows of the rows and the columns, from the attributes of ONNX."""
    rows, columns = (
        Window(
            size=(kernel[axis] - 1) * dilations[axis] + 1,
            stride=strides[axis],
            before=pads[axis],
            after=pads[axis + 2],
        )
        for axis in (0, 1)
    )
    return rows, columns
