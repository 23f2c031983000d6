"""Define the base of the manifest's records, and types that bound how large, small or long their values may be.

A bundle is untrusted, so every field of its manifest has such a type. The bounds admit all that a detector can have.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

MAX_SIDE: Final = 16384
"""The longest side in pixels of a frame with changed borders, and of a resized frame."""
Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Border: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
GreyLevel: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=255)]
# No window, no count of pixels and no number of channels is larger than the product of two sides.
PixelCount: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE**2)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
# Graphs answer in float32, so every score, likelihood and threshold is a number that float32 holds. Narrower bounds
# would refuse real detectors: the scores of an untrained flow reach 1e9 and more.
LARGEST_FLOAT32: Final = (2 - 2**-23) * 2.0**127
Value: TypeAlias = Annotated[float, msgspec.Meta(ge=-LARGEST_FLOAT32, le=LARGEST_FLOAT32)]
PositiveValue: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=LARGEST_FLOAT32)]
# Means and standard deviations are in units of the [0, 1] range of a pixel. A network that was trained on 16-bit
# levels has a standard deviation of 1 / 65535. A mean beyond the pixels' range by ten times that range normalises
# nothing.
LARGEST_MEAN: Final = 10.0
SMALLEST_STD: Final = 1e-6
LARGEST_STD: Final = 1e3
Mean: TypeAlias = Annotated[float, msgspec.Meta(ge=-LARGEST_MEAN, le=LARGEST_MEAN)]
Std: TypeAlias = Annotated[float, msgspec.Meta(ge=SMALLEST_STD, le=LARGEST_STD)]
# Tests of regions are counted in powers of ten of the pixels, and their probabilities may fall below 1e-100000.
LogNfa: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
# The exporter offers 17 to 21 and bfloat16 takes 22. The upper end leaves room for the opsets to come.
Opset: TypeAlias = Annotated[int, msgspec.Meta(ge=17, le=40)]
LONGEST_NAME: Final = 200
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]
# Linux allows 255 bytes, and `flowedge.text.printable` makes at most six characters of a byte.
FileName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=6 * 255)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=10_000)]
LONGEST_REASON: Final = 1000
Reason: TypeAlias = Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)]
NodeNames: TypeAlias = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=1000)], ...], msgspec.Meta(max_length=100_000)
]
Moment: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})\Z"
    ),
]
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Scalar: TypeAlias = Text | int | float | bool


class ManifestRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record without unknown fields. Each subclass repeats ``kw_only``, since msgspec does not inherit it."""
