"""Define the manifest's records about frames: the preprocessing, and the ranges of the frames of good parts."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from flowedge.frame_quantities import LARGEST_QUANTITY
from flowedge.manifest_bounds import Border, Count, GreyLevel, ManifestRecord, Mean, Name, Pixels, Std

ResizeMethod: TypeAlias = Literal[
    "float_bilinear", "float_bicubic", "pil_bilinear", "pil_lanczos", "cv2_bilinear"
]
PadMode: TypeAlias = Literal["constant", "edge", "reflect", "symmetric"]


class FrameStep(ManifestRecord, frozen=True, kw_only=True):
    """One change of a frame's borders before the resize.

    Attributes:
        kind: ``center_crop`` cuts to ``size``, ``pad`` adds ``border``, and ``square_pad`` pads the shorter side to the
            length of the longer one.
        size: ``[height, width]`` of a centre crop in pixels. Around a frame that is smaller there is ``fill``.
        border: Pixels added at the left, the top, the right and the bottom, as torchvision orders them.
        mode: The added pixels. ``constant`` adds ``fill``, ``edge`` repeats the last pixel, and ``reflect`` and
            ``symmetric`` mirror the frame without and with its last pixel.
        fill: Grey levels of red, green and blue, 0 to 255.
    """

    kind: Literal["center_crop", "pad", "square_pad"]
    size: tuple[Pixels, Pixels] | None = None
    border: tuple[Border, Border, Border, Border] = (0, 0, 0, 0)
    mode: PadMode = "constant"
    fill: tuple[GreyLevel, GreyLevel, GreyLevel] = (0, 0, 0)

    def __post_init__(self) -> None:
        if (self.size is not None) != (self.kind == "center_crop"):
            raise ValueError("a centre crop has a size, and no other step does")


class Preprocessing(ManifestRecord, frozen=True, kw_only=True):
    """The steps from a frame (uint8, RGB, any size) to the network's input, in this order.

    Attributes:
        frame_steps: Changes of the frame's borders, in order.
        resize: ``[height, width]`` in pixels to resize to, whatever the frame's aspect. With ``keep_aspect`` only the
            first number is used, for the shorter side.
        keep_aspect: True when the shorter side is resized and the aspect ratio is kept.
        method: The method of the resize. ``float_bilinear`` and ``float_bicubic`` compute in float32 in [0, 1],
            antialiased as torchvision does on tensors. ``pil_bilinear`` and ``pil_lanczos`` take and give uint8 as PIL
            does. ``cv2_bilinear`` takes and gives uint8 as OpenCV's INTER_LINEAR does, without antialiasing.
        crop: ``[height, width]`` of a centre crop after the resize, or None.
        grayscale: True when each channel becomes ``0.2989 red + 0.587 green + 0.114 blue`` in float32 after the
            resize.
        mean: The mean of each RGB channel, in units of the [0, 1] range.
        std: The standard deviation of each RGB channel, in units of the [0, 1] range.
    """

    resize: tuple[Pixels, Pixels]
    keep_aspect: bool = False
    method: ResizeMethod
    crop: tuple[Pixels, Pixels] | None = None
    frame_steps: Annotated[tuple[FrameStep, ...], msgspec.Meta(max_length=8)] = ()
    grayscale: bool = False
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]


class FrameRange(ManifestRecord, frozen=True, kw_only=True):
    """The range that one plain statistic has in frames of good parts.

    Attributes:
        quantity: One of `flowedge.frame_quantities.FRAME_QUANTITIES`.
        low: The smallest value of a good frame, in the quantity's unit.
        high: The largest value of a good frame, in the quantity's unit.
    """

    quantity: Name
    low: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_QUANTITY)]
    high: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_QUANTITY)]


class FrameCheck(ManifestRecord, frozen=True, kw_only=True):
    """The ranges of the frames of good parts. A frame outside of any range is not inspected.

    Attributes:
        rate: The expected share of good frames that are outside, over all quantities together.
        images: The number of good frames that the ranges were fitted on.
        ranges: The ranges, at most one for each quantity.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    images: Count
    ranges: Annotated[tuple[FrameRange, ...], msgspec.Meta(max_length=1000)]
