"""PNM files with comments are refused where Pillow would join the numbers on both sides of a comment."""

from __future__ import annotations

import numpy as np
import pytest

from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
from support.picture_files import pil_pixels


@pytest.mark.parametrize(
    "file",
    [
        b"P5#c\n2 1 255\nab",
        b"P5 2#c\n1 255\nab",
        b"P5 2 1#c\n255\nab",
        b"P2 2 1 255\n10#c\n20 30",
        b"P3 1 1 255\n1 2#c\n3 4",
        b"P1#c\n2 1\n01",
    ],
)
def test_a_comment_that_touches_a_number_is_refused(file: bytes) -> None:
    with pytest.raises((DamagedError, RefusedError)):
        decode(file)


@pytest.mark.parametrize(
    "file",
    [
        b"P5 #c\n2 #d\n 1\n#e\n255\nab",
        b"P2\n# c\n2 1 255\n10 #c\n20\n#d",
        b"P1 2 1\n#c\n0#c\n1",
        b"P4\n#c\n8 1\nz",
    ],
)
def test_a_comment_between_is_no_matter(file: bytes) -> None:
    np.testing.assert_array_equal(decode(file), pil_pixels(file))
