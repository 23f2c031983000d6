"""Express torchvision's transforms, as anomalib stores them, as `flowedge.manifest.Preprocessing`.

anomalib applies a transform to float tensors in [0, 1] of three channels, so that crops, padding, grey and the resize
are linear, and none of them rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.preprocessing import (
    Size,
    Triple,
    check_crop,
    size_of,
    transform_steps,
    triple_of,
)
from flowedge.export.checkpoints.settings import INPUT_SIZE, MEAN, RESIZE_METHOD, STD, Choices
from flowedge.framing import framing
from flowedge.geometry import GREY_WEIGHTS
from flowedge.manifest import FrameStep, PadMode, Preprocessing, ResizeMethod
from flowedge.manifest_bounds import LARGEST_MEAN, LARGEST_STD, SMALLEST_STD
from flowedge.text import printable, shown

# Steps that only change the type, which every pipeline here does anyway.
_CASTS: Final = frozenset(
    {"ToImage", "ToDtype", "ToTensor", "PILToTensor", "ToImageTensor", "ConvertImageDtype"}
)
_FLOAT_TYPES: Final = ("None", "float32", "float", "float64", "double")
_METHODS: Final[Mapping[str, ResizeMethod]] = {"bilinear": "float_bilinear", "bicubic": "float_bicubic"}
_LEVEL_TOLERANCE: Final = 1e-3  # the largest difference of a fill from a whole grey level
_ANY_FRAME: Final = (1000, 1000)


def transform_pipeline(
    choices: Choices, transform: object, *, from_shapes: Size | None = None
) -> Preprocessing:
    """Read a torchvision transform: anomalib 2.7's description of it, or the stand-in of the pickled object.

    Args:
        choices: The account that keeps the decisions.
        transform: The description or the stand-in.
        from_shapes: The size that the model's shapes imply, for a transform that does not resize.

    Raises:
        CheckpointError: The transform has a step that cannot be reproduced.
    """
    reader = _TransformReader()
    for kind, args in transform_steps(transform):
        if not reader.read(kind, args):
            raise CheckpointError(
                f"the checkpoint's transform has the step {printable(kind)}({shown(args)}), which FlowEdge "
                "cannot reproduce there. It can reproduce centre crops and padding, one Resize, one CenterCrop, "
                "Grayscale and one Normalize, in this order. Train with those, or say what replaces the transform: "
                "--set input_size, resize_method, mean and std."
            )
    if reader.channels != len(GREY_WEIGHTS):
        raise CheckpointError(
            "the checkpoint's transform has Grayscale(num_output_channels=1) and nothing that makes three channels of "
            "one. Train with num_output_channels=3."
        )
    resized, crop, keep_aspect = reader.resized, reader.crop, reader.keep_aspect
    if resized is None and any(step.kind == "center_crop" for step in reader.frame_steps):
        resized = framing(
            tuple(reader.frame_steps), _ANY_FRAME
        ).size  # all frames have one size behind a crop
    held = crop or resized
    size = choices.take(INPUT_SIZE, held=held or from_shapes, why="Its transform has no Resize.")
    if size != held:
        resized, crop, keep_aspect = size, None, False
    if not reader.padded:
        check_crop(crop, resized, keep_aspect=keep_aspect)
    return Preprocessing(
        frame_steps=tuple(reader.frame_steps),
        resize=resized or size,
        keep_aspect=keep_aspect,
        method=choices.take(
            RESIZE_METHOD,
            held=reader.method,
            why="Its Resize is not an antialiased bilinear or bicubic one; name the nearest.",
        ),
        crop=crop,
        grayscale=reader.grayscale,
        mean=choices.take(MEAN, held=reader.mean),
        std=choices.take(STD, held=reader.std),
    )


@dataclass(slots=True)
class _TransformReader:
    """Translate the steps of a transform, one after the other, into fields of `Preprocessing`."""

    frame_steps: list[FrameStep] = field(default_factory=list)
    resized: Size | None = None
    keep_aspect: bool = False
    method: ResizeMethod | None = "float_bilinear"
    crop: Size | None = None
    padded: bool = False
    grayscale: bool = False
    channels: int = 3
    normalised: bool = False
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    def read(self, kind: str, args: Mapping[str, object]) -> bool:
        """Add one step of a transform, and return True when FlowEdge can reproduce the step at this place."""
        match kind:
            case "Resize" if self.resized is None:
                return self._resize(args)
            case "CenterCrop" | "ExportableCenterCrop":
                return self._center_crop(args)
            case "Pad" if not self.normalised:
                return self._pad(args)
            case "SquarePad" if self.resized is None and not self.normalised:
                self.frame_steps.append(FrameStep(kind="square_pad", mode="edge"))
                return True
            case "Grayscale" if not self.normalised:
                self.grayscale, self.channels = True, 3 if args.get("num_output_channels", 1) == 3 else 1
                return args.get("num_output_channels", 1) in (1, 3)
            case "RGB":
                self.channels = 3
                return True
            case "Normalize" if not self.normalised:
                self.mean = triple_of("mean", args.get("mean"), -LARGEST_MEAN, LARGEST_MEAN)
                self.std = triple_of("std", args.get("std"), SMALLEST_STD, LARGEST_STD)
                self.normalised, self.channels = True, 3  # one channel less three means is three channels
                return True
            case _:
                return kind in _CASTS and _is_float(args.get("dtype"))

    def _resize(self, args: Mapping[str, object]) -> bool:
        size = args.get("size")
        self.resized = size_of(size, "Resize's size")
        self.keep_aspect = isinstance(size, int) or (isinstance(size, (list, tuple)) and len(size) == 1)
        interpolation = args.get("interpolation", "bilinear")
        is_antialiased = args.get("antialias", True) is True
        self.method = _METHODS.get(str(interpolation)) if is_antialiased else None
        return args.get("max_size") is None

    def _center_crop(self, args: Mapping[str, object]) -> bool:
        size = size_of(args.get("size"), "CenterCrop's size")
        if self.resized is None and not self.normalised:
            self.frame_steps.append(FrameStep(kind="center_crop", size=size))
            return True
        if self.resized is None or self.crop is not None:
            return False
        self.crop = size
        return True

    def _pad(self, args: Mapping[str, object]) -> bool:
        border, mode = _border(args.get("padding")), str(args.get("padding_mode", "constant"))
        fill = _grey_levels(args.get("fill", 0))
        if border is None or fill is None or mode not in get_args(PadMode):
            return False
        if self.resized is None:
            if any(fill) and self.grayscale and mode == "constant":
                return False  # conversion to grey comes last here and would change the fill
            mode_: PadMode = mode  # type: ignore[assignment]
            self.frame_steps.append(FrameStep(kind="pad", border=border, mode=mode_, fill=fill))
            return True
        # A black border around an image of known size is a centre crop that is larger than the image.
        left, top, right, bottom = border
        is_centred = right - left in (0, 1) and bottom - top in (0, 1)
        if any(fill) or mode != "constant" or self.keep_aspect or self.crop is not None or not is_centred:
            return False
        self.padded = True
        self.crop = self.resized[0] + top + bottom, self.resized[1] + left + right
        return True


def _border(padding: object) -> tuple[int, int, int, int] | None:
    """Return torchvision's padding as left, top, right and bottom. The result is None where it is something else."""
    sides = list(padding) if isinstance(padding, (list, tuple)) else [padding]
    if len(sides) not in (1, 2, 4) or not all(type(side) is int and 0 <= side <= 16384 for side in sides):
        return None
    left, top, right, bottom = (int(str(side)) for side in (sides * 4)[:4])
    return left, top, right, bottom


def _grey_levels(fill: object) -> tuple[int, int, int] | None:
    """Return a fill in [0, 1] as grey levels, or None where it is no colour of whole levels."""
    parts = [0] if fill is None else list(fill) if isinstance(fill, (list, tuple)) else [fill]
    if len(parts) not in (1, 3):
        return None
    levels: list[int] = []
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0 <= part <= 1:
            return None
        levels.append(round(255 * part))
        if not math.isclose(levels[-1], 255 * part, rel_tol=0, abs_tol=_LEVEL_TOLERANCE):
            return None
    red, green, blue = levels * (3 // len(levels))
    return red, green, blue


def _is_float(dtype: object) -> bool:
    types = dtype.values() if isinstance(dtype, dict) else (dtype,)
    return all(str(one).rpartition(".")[2] in _FLOAT_TYPES for one in types)
