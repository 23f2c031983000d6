"""Measure a detector on a labelled dataset, one image at a time.

The evaluation keeps only counts of an image, so the metrics' memory does not depend on the number of images. The list
of the dataset's file names needs a few hundred bytes an image, and a limit of log NFA needs 9. Image scores are
compared as float32, and their metrics are exact up to 65,536 images of a class. The module ``metrics`` states how close
the pixel metrics are.

Pixel metrics are computed at the size of the network's input, on the map that the network gives. The masks are resized
to the map, and the map stays as it is. Published figures differ by this choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.dataset import Dataset, Sample, read_mask
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.tally import CheckedDetection, Tally
from flowedge.errors import ImageError
from flowedge.manifest import Thresholds
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.lanes import in_order

_Answer = TypeVar("_Answer", bound=CheckedDetection)
_Seen = TypeVar("_Seen", bound=CheckedDetection, contravariant=True)


class Observer(Protocol[_Seen]):
    """A listener that is given every image of an evaluation, such as a page with pictures."""

    def add(
        self, sample: Sample, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, detection: _Seen
    ) -> None:
        """Take an image that was counted."""
        ...

    def leave_out(self, sample: Sample, problem: str) -> None:
        """Take an image that was not inspected, with the reason."""
        ...

    def finish(self, tally: Tally) -> None:
        """Take the counts of the whole dataset, after the last image."""
        ...


def evaluate(
    detect: Callable[[NDArray[np.uint8]], _Answer],
    dataset: Dataset,
    *,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - frozen
    reports: Reports = SILENT,
    pixel_range: PixelRange | None = None,
    observer: Observer[_Answer] | None = None,
    lanes: int = 1,
) -> Evaluation:
    """Run a detector over a dataset and measure it.

    Args:
        detect: The detector, which takes ``(H, W, 3)`` uint8 RGB.
        dataset: The labelled images and their masks.
        thresholds: The bundle's thresholds. Where there is none, the threshold of the best F1 of this dataset is used,
            and a note records that. With ``nfa``, an image without log NFA counts as not inspected.
        reports: Receives the progress, one unit for each image.
        pixel_range: The window of the bundle's manifest for images of more than 8 bits.
        observer: Receives every image after it was counted.
        lanes: The number of threads that read and inspect images at once.

    Raises:
        DataError: A mask has another size than its image.
        CalibrationError: No image gave a finite score and map.
    """
    tally = Tally(has_masks=not dataset.classes_without_masks, nfa=thresholds.nfa)
    reports.step("evaluating", len(dataset.samples))

    def inspected(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None, _Answer] | ImageError:
        try:
            image = read_image(sample.path, pixel_range)
            mask = None if sample.mask is None or tally.pixels is None else read_mask(sample.mask, image)
            return image, mask, detect(image)
        except ImageError as error:
            return error

    with contextlib.closing(in_order(inspected, dataset.samples, lanes=lanes)) as answers:
        for sample, answer in zip(dataset.samples, answers, strict=True):
            if isinstance(answer, ImageError):
                problem = str(answer)
                tally.leave_out(sample, problem)
            else:
                image, mask, detection = answer
                problem = tally.add(sample, mask, detection)
                if observer is not None and not problem:
                    observer.add(sample, image, mask, detection)
            if observer is not None and problem:
                observer.leave_out(sample, problem)
            reports.advance()
    if observer is not None:
        observer.finish(tally)
    return tally.evaluation(dataset, thresholds)
