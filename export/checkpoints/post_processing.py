"""Read the thresholds and ranges of anomalib's checkpoints as `flowedge.manifest.SourceScale`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.contents import Contents, State, check_readable
from flowedge.manifest import PartScale, SourceRule, SourceScale
from flowedge.manifest_bounds import LARGEST_FLOAT32
from flowedge.text import shown

# A pickled module of 2.x does not hold its version. The formula of 2.7 is that of the others where they have one.
_RULES: Final[Mapping[str, SourceRule]] = {"2.0-2.6": "2.0-2.6", "2.x": "2.7", "2.7": "2.7"}
_SENSITIVITY: Final = 0.5


def source_scale(contents: Contents, generation: str, settings: Mapping[str, object]) -> SourceScale | None:
    """Return the thresholds and ranges that anomalib fitted on its validation images, or None if it fitted none.

    Args:
        contents: The checkpoint.
        generation: The generation of anomalib, in the words of `Checkpoint.generation`.
        settings: The sensitivities and switches of the post-processor of 2.x. Missing ones have their defaults.

    Raises:
        CheckpointError: A sensitivity is not within 0 and 1.
    """
    rule = _RULES.get(generation)
    scale = _since_2(contents.state, rule, settings) if rule else _before_2(contents.state)
    parts = (scale.image, scale.pixel)
    if all(value is None for part in parts for value in (part.threshold, part.minimum, part.log_mean)):
        return None
    return scale


def _since_2(state: State, rule: SourceRule, settings: Mapping[str, object]) -> SourceScale:
    def setting(name: str) -> bool:
        return settings.get(name) is not False

    thresholds = {part: _held(state, f"post_processor._{part}_threshold") for part in ("image", "pixel")}
    if setting("enable_threshold_matching"):
        image, pixel = thresholds["image"], thresholds["pixel"]
        thresholds = {"image": pixel if image is None else image, "pixel": image if pixel is None else pixel}

    def part(name: Literal["image", "pixel"]) -> PartScale:
        given = settings.get(f"{name}_sensitivity")
        sensitivity = given if isinstance(given, (int, float)) else _SENSITIVITY
        if not 0 <= sensitivity <= 1:
            raise CheckpointError(
                f"the checkpoint's {name}_sensitivity is {shown(given)}, expected 0 to 1. "
                "Copy or train it again."
            )
        normalises = setting("enable_normalization")
        return PartScale(
            threshold=thresholds[name],
            minimum=_held(state, f"post_processor.{name}_min") if normalises else None,
            maximum=_held(state, f"post_processor.{name}_max") if normalises else None,
            sensitivity=float(sensitivity) if setting("enable_thresholding") else None,
        )

    return SourceScale(rule=rule, image=part("image"), pixel=part("pixel"))


def _before_2(state: State) -> SourceScale:
    def part(name: Literal["image", "pixel"], values: str) -> PartScale:
        # Version 1.2 has one range for scores and one for maps. Older versions only have that for maps.
        start = "normalization_metrics."
        return PartScale(
            threshold=_held(state, f"{name}_threshold.value"),
            minimum=_held(state, f"{start}{values}.min", f"{start}min"),
            maximum=_held(state, f"{start}{values}.max", f"{start}max"),
            log_mean=_held(state, f"{start}{name}_mean"),
            log_std=_held(state, f"{start}{name}_std"),
        )

    image, pixel = part("image", "pred_scores"), part("pixel", "anomaly_maps")
    needed = (image.log_mean, image.log_std, pixel.log_std, image.threshold, pixel.threshold)
    return SourceScale(rule="0.x-1.x" if None in needed else "0.x-cdf", image=image, pixel=pixel)


def _held(state: State, *names: str) -> float | None:
    """Return the first of several stored scalars that the checkpoint has, or None if it is missing or was not fitted.

    Raises:
        CheckpointError: The scalar is beyond what float32 holds, or a standard deviation that is not positive.
    """
    name = next((name for name in names if name in state), None)
    if name is None:
        return None
    tensor = state[name]
    check_readable(name, tensor)
    if tensor.numel() != 1 or not math.isfinite(value := float(tensor)):
        return None
    if abs(value) > LARGEST_FLOAT32 or (name.endswith("_std") and value <= 0):
        raise CheckpointError(
            f"{name} is {value:g}, which no model fits to its images. Copy or train it again."
        )
    return value
