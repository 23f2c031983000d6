"""Count the frames that are missing between the numbers that a camera gives its frames."""

from __future__ import annotations

from typing import Final

_MOST_16_BITS: Final = 0xFFFF


class FrameNumbers:
    """The numbers of one connection to a camera, which rise by one and may have 16 bits.

    GigE Vision counts from 1 to 65535 and begins with 1 again, since 0 is no number of a frame. Cameras that use 0 are
    followed too. A number that goes back otherwise is one of a camera that has started again, and no loss is counted.

    Examples:
        >>> numbers = FrameNumbers()
        >>> [numbers.lost_before(number) for number in (65534, 65535, 1, 2, 5)]
        [0, 0, 0, 0, 2]
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._unnumbered = 0

    def lost_before(self, number: int) -> int:
        """Return the number of frames that are missing between the frame before and this one."""
        missing = 0 if self._last is None else _between(self._last, number)
        lost = max(0, missing - self._unnumbered)
        self._last, self._unnumbered = number, 0
        return lost

    def skip(self) -> None:
        """Take note of a frame that came without a number that can be trusted, since it is not whole."""
        self._unnumbered += 1


def _between(last: int, number: int) -> int:
    """Return how many numbers lie between two numbers that follow one another."""
    if number == last:
        return 0
    if number > last:
        ahead = number - last
        # A jump over half of the range of 16 bits is a step back over the wrap.
        return 0 if number <= _MOST_16_BITS and ahead > _MOST_16_BITS // 2 else ahead - 1
    if last <= _MOST_16_BITS and last - number > _MOST_16_BITS // 2:
        return _MOST_16_BITS - last + max(number - 1, 0)
    return 0
