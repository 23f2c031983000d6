"""Compare the scores of good images with the ranges that the source's training left in its checkpoint.

Where a checkpoint does not hold its transform, the exporter assumes one. The ranges and the threshold that anomalib
stored belong to scores of images that were preprocessed as the training did it. So good images whose scores cannot come
from those ranges show a wrong preprocessing, or images of another kind. Two rules look for that:

- At least three quarters of the good images are above the range of the source's images, or below it. The image scores
  and the largest values of the maps are compared. Where the source stored a mean and a deviation in place of a range,
  three deviations around the mean are the range.
- At least 80 % of the good images are anomalous by the source's own threshold.

With at least `FEWEST_IMAGES` images, the first rule errs in less than 1 % of the cases if the source's range comes from
at least ten good images like these: that many new ones are then rarely all outside. The second rule errs in less than
1 % if the source's threshold lets half of the good images pass. The scores are those of the source, without score
maxima that were fitted on the user's images. A score that each image normalises by itself (CFLOW, MSFlow) depends
little on the preprocessing, so the rules find hardly any error there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.manifest import Assumed, PartScale, SourceScale
from flowedge.runtime.aggregate import aggregate
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.source_scale import scaled_score

FEWEST_IMAGES: Final = 20
"""The least number of good images that are compared."""

# The names of `--set` that decide how an image becomes the network's input.
_PREPROCESSING: Final = ("input_size", "resize_method", "mean", "std", "pixel_range")
_MOST_IMAGES: Final = 32
_OUTSIDE_SHARE: Final = 0.75
_ANOMALOUS_SHARE: Final = 0.8
_DEVIATIONS: Final = 3.0


def preprocessing_doubt(detect: Detector, good: Sequence[Path]) -> str:
    """Return why good images cannot have been preprocessed as the source's were, or an empty text.

    Args:
        detect: A detector with FlowEdge's own scores, calibrated or not.
        good: The good images. Up to 32 of them, spread over all, are inspected.

    Returns:
        One or more sentences with the numbers, the assumed values and the option to try. Empty also where the bundle
        has no ranges of its source or fewer than ``FEWEST_IMAGES`` of the images can be read.

    Raises:
        EngineUnavailableError: The device stopped.
    """
    scale = detect.bundle.manifest.source_scale
    if scale is None or len(good) < FEWEST_IMAGES:
        return ""
    count = min(len(good), _MOST_IMAGES)
    answers = np.array(list(_source_answers(detect, [good[n * len(good) // count] for n in range(count)])))
    if len(answers) < FEWEST_IMAGES or not np.isfinite(answers).all():
        return ""
    facts = list(_contradictions(answers[:, 0], answers[:, 1], scale))
    if not facts:
        return ""
    return (
        f"{'; '.join(facts)}. So the images are not preprocessed as the source's were, or they are of another kind. "
        f"{_assumptions(detect.bundle.manifest.assumed)}"
    )


def _source_answers(detect: Detector, images: Sequence[Path]) -> Iterator[tuple[float, float]]:
    """Give each image's score and the largest value of its map, as the source's network gives them for one image."""
    manifest = detect.bundle.manifest
    scoring = manifest.graph(detect.precision).scoring
    for path in images:
        try:
            result = detect(read_image(path, manifest.pixel_range))
        except ImageError:  # The command that runs this check reports the image itself.
            continue
        if scoring.normalisation != "fixed_reference":
            yield result.score, float(result.network_map.max())
            continue
        own = msgspec.structs.replace(scoring, normalisation="per_image", score_maxima=None)
        levels = [level[None, None] for level in result.levels]
        answer = aggregate(levels, own, manifest.family, manifest.image_size)
        yield float(answer.score[0]), float(answer.anomaly_map.max())


def _contradictions(
    scores: NDArray[np.float64], map_maxima: NDArray[np.float64], scale: SourceScale
) -> Iterator[str]:
    for noun, values, part in (
        ("score", scores, scale.image),
        ("largest map value", map_maxima, scale.pixel),
    ):
        limits = _range(part, noun, scale)
        if limits is None:
            continue
        below, above = (float(share.mean()) for share in (values < limits[0], values > limits[1]))
        if max(below, above) >= _OUTSIDE_SHARE:
            yield (
                f"{max(below, above):.0%} of {len(values)} good images have a {noun} "
                f"{'below' if below > above else 'above'} the source's range of {limits[0]:.4g} to {limits[1]:.4g} "
                f"(their median is {np.median(values):.4g})"
            )
    is_anomalous = scaled_score(scores.astype(np.float32), scale).is_anomalous
    if is_anomalous is not None and is_anomalous.mean() >= _ANOMALOUS_SHARE:
        yield f"{is_anomalous.mean():.0%} of {len(scores)} good images are anomalous by the source's own threshold"


def _range(part: PartScale, noun: str, scale: SourceScale) -> tuple[float, float] | None:
    """Return the source's smallest and largest value, None where it stored none."""
    if scale.rule != "0.x-cdf":
        if part.minimum is None or part.maximum is None or part.minimum >= part.maximum:
            return None
        return part.minimum, part.maximum
    # The map's mean is not stored beside its deviation.
    if noun != "score" or part.log_mean is None or part.log_std is None:
        return None
    width = _DEVIATIONS * abs(part.log_std)
    low, high = np.exp(np.clip([part.log_mean - width, part.log_mean + width], -700, 700))
    return float(low), float(high)


def _assumptions(assumed: Sequence[Assumed]) -> str:
    """Name the values of the preprocessing that the checkpoint did not hold, and what to do about them."""
    named = [f"{one.name}={one.value}" for one in assumed if one.name in _PREPROCESSING]
    held = f"The checkpoint did not hold {', '.join(named)}. " if named else ""
    return (
        f"{held}Export again with the training's own values: --transform-from with the run's model.pt, or --set "
        "NAME=VALUE."
    )
