"""Measure a detector on a labelled dataset, one image at a time.

Nothing is kept of an image but counts: the metrics' memory does not depend on the number of images. (The list
of the dataset's file names does, by a few hundred bytes an image.) Image scores are compared as float32 and
their metrics are exact up to 65,536 images of a class; ``metrics`` says how close the pixel metrics are.

Pixel metrics are computed at the size of the network's input, on the map as the network gives it: the masks
come to the map, not the map to the masks. Published figures differ by this choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import Dataset, read_mask
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.tally import CheckedDetection, Tally
from flowedge.errors import ImageError
from flowedge.manifest import Thresholds
from flowedge.progress import SILENT, Reports
from flowedge.runtime.images import read_image
from flowedge.runtime.pixel_range import PixelRange


def evaluate(
    detect: Callable[[NDArray[np.uint8]], CheckedDetection],
    dataset: Dataset,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - frozen
    reports: Reports = SILENT,
    pixel_range: PixelRange | None = None,
) -> Evaluation:
    """Run a detector over a dataset and measure it.

    Args:
        detect: From ``(H, W, 3)`` uint8 RGB to the score and the map.
        dataset: Labels and masks.
        thresholds: The bundle's. Where there is none, the threshold of the best F1 of this dataset is used,
            and a note says so. With ``nfa``, an image for which ``detect`` gives no log NFA was not inspected.
        reports: Told of each image that is done.
        pixel_range: The manifest's.

    Raises:
        DataError: A mask has another size than its image.
        CalibrationError: No image gave a finite score and map.
    """
    tally = Tally(has_masks=not dataset.classes_without_masks, nfa=thresholds.nfa)
    reports.step("evaluating", len(dataset.samples))
    for sample in dataset.samples:
        try:
            image = read_image(sample.path, pixel_range)
            mask = None if sample.mask is None or tally.pixels is None else read_mask(sample.mask, image)
            detection = detect(image)
        except ImageError as error:
            tally.leave_out(sample, str(error))
        else:
            tally.add(sample, mask, detection)
        reports.advance()
    return tally.evaluation(dataset, thresholds)
