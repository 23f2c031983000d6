"""Make results without a bundle, so that a test chooses map, frame and thresholds."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import ColourScale, Preprocessing, Threshold
from flowedge.runtime.record import Verdict
from flowedge.runtime.result import Result, Timings

SCALE: Final = ColourScale(low=1.0, high=3.0)


def made_result(
    frame: NDArray[np.uint8],
    network_map: NDArray[np.floating],
    *,
    verdict: Verdict = "anomalous",
    pixel_threshold: float | None = 2.0,
    image_threshold: float | None = 2.5,
    colours: ColourScale | None = SCALE,
    resized: tuple[int, int] | None = None,
    **fields: Any,
) -> Result:
    """Make a result whose map is laid over the frame without interpolation where both have one size.

    Args:
        frame: ``(H, W, 3)`` uint8.
        network_map: ``(h, w)``.
        verdict: The verdict.
        pixel_threshold: The threshold of the map, if any.
        image_threshold: The threshold of the score, if any.
        colours: The colour scale of the bundle, if any.
        resized: The size to which the frame is resized before its centre is cropped to the map's size. By default
            nothing is cropped.
        fields: Further fields of the result.
    """
    height, width = network_map.shape
    return Result(
        score=float(np.nanmax(network_map)),
        verdict=verdict,
        network_map=network_map.astype(np.float32),
        levels=(),
        frame=frame,
        preprocessing=Preprocessing(
            resize=resized or (height, width),
            crop=(height, width) if resized else None,
            method="float_bilinear",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
        image_threshold=None
        if image_threshold is None
        else Threshold(value=image_threshold, method="manual"),
        pixel_threshold=None
        if pixel_threshold is None
        else Threshold(value=pixel_threshold, method="manual"),
        colours=colours,
        precision="fp32",
        engine="null",
        engine_reason="the test named it",
        timings=Timings(preprocess_ms=0, infer_ms=0, decide_ms=0),
        **fields,
    )
