"""Read and infer the images of good parts that a bundle is calibrated on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.calibration_record import kept_values
from flowedge.calibration.frame_range import FittedFrameCheck, fit_frame_check
from flowedge.calibration.score_maxima import StoredLevels
from flowedge.errors import CalibrationError
from flowedge.frame_quantities import FRAME_QUANTITIES
from flowedge.progress import Reports
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.frame_check import frame_statistics
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.lanes import in_order, lanes_of
from flowedge.runtime.result import Result


class GoodImages:
    """The good images of one calibration, which are measured for the frame check when they are first read.

    Attributes:
        paths: The image files.
        names: The paths as text, for messages.
    """

    def __init__(self, paths: Sequence[Path], pixel_range: PixelRange | None, *, measures: bool) -> None:
        """Read nothing yet.

        Args:
            paths: The image files, at least one.
            pixel_range: The window of images of more than 8 bits.
            measures: True where the frame check is to be fitted.
        """
        self.paths = tuple(paths)
        self.names = [str(path) for path in paths]
        self._pixel_range = pixel_range
        self._measures = measures
        self._statistics: dict[Path, NDArray[np.float64]] = {}

    def inferred(self, detect: Detector, path: Path) -> Result:
        """Infer one image.

        Raises:
            CalibrationError: The answer is not finite.
            ImageError: The image cannot be read.
        """
        return finite_result(detect, self._read(path), path)

    def results(self, detect: Detector, reports: Reports) -> Iterator[Result]:
        """Infer each image in order, and report each.

        Raises:
            CalibrationError: An answer is not finite.
            ImageError: An image cannot be read.
        """
        inferred = in_order(partial(self.inferred, detect), self.paths, lanes=lanes_of(detect.engine))
        with contextlib.closing(inferred) as results:
            for result in results:
                yield result
                reports.advance()

    def frame_check(self, rate: float) -> FittedFrameCheck:
        """Fit the frame check with `fit_frame_check`. Only the images that no pass has inferred are read for it.

        Raises:
            CalibrationError: The rate is not between 0 and 1.
            ImageError: An image cannot be read.
        """
        for path in self.paths:
            if path not in self._statistics:
                self._read(path)
        statistics = np.array([self._statistics[path] for path in self.paths])
        return fit_frame_check(statistics, rate=rate, names=self.names)

    def frame_values(self) -> dict[str, tuple[float, ...]]:
        """Return the statistics that a record keeps of the measured images, by the name of the quantity."""
        columns = np.array([self._statistics[path] for path in self.paths if path in self._statistics]).T
        return {
            name: kept_values(column)
            for name, column in zip(FRAME_QUANTITIES, columns, strict=bool(len(columns)))
        }

    def _read(self, path: Path) -> NDArray[np.uint8]:
        """Read an image, and measure it the first time."""
        frame = read_image(path, self._pixel_range)
        if self._measures and path not in self._statistics:
            self._statistics[path] = frame_statistics(frame)
        return frame


def finite_result(detect: Detector, frame: NDArray[np.uint8], path: Path) -> Result:
    """Infer the frame of an image file.

    Raises:
        CalibrationError: The answer is not finite.
    """
    result = detect(frame)
    if result.verdict == "not_inspected":
        raise CalibrationError(
            f"the {detect.precision} graph's answer for {path} is not finite. Remove the image, or run "
            "flowedge verify to see whether the precision is the cause."
        )
    return result


def stored_levels(detect: Detector, images: GoodImages, reports: Reports) -> StoredLevels:
    """Infer each image once and store its levels. The caller closes them."""
    levels = (
        tuple(level[None, None] for level in result.levels) for result in images.results(detect, reports)
    )
    return StoredLevels(levels, names=images.names)


def hash_of_images(images: Sequence[Path]) -> str:
    """Return one SHA-256 of all files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(images, key=lambda image: image.name):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
