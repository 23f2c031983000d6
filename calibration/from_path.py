"""Functions that take folders: calibrate a bundle on images, and evaluate a detector on a dataset."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from flowedge.bundle import open_bundle
from flowedge.calibration import evaluation
from flowedge.calibration.calibrate import Calibration, calibrate_bundle
from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.frame_quantities import DEFAULT_FRAME_RATE
from flowedge.runtime.detector import Detector

_QUANTILES = ThresholdRequest()


def calibrate(
    path: str | PathLike[str],
    data: str | PathLike[str],
    *,
    request: ThresholdRequest = _QUANTILES,
    frame_rate: float | None = DEFAULT_FRAME_RATE,
    engine: str | None = None,
    threads: int | None = None,
) -> Calibration:
    """Fit the reference maxima and the thresholds of every precision of a bundle, and store them in the bundle.

    Args:
        path: The bundle's folder, which is replaced by its calibrated version or left as it was.
        data: A folder of images of good parts, or a dataset in MVTec AD's layout, whose ``train/good`` is taken. An
            ``f1`` request needs a dataset with labelled test images.
        request: The thresholds to fit; by default the quantiles 0.99 of images and 0.9995 of pixels.
        frame_rate: The expected share of good frames that the frame check stops, above 0 and below 1. None fits no
            frame check and removes an earlier one.
        engine: A name of ``flowedge.runtime.ENGINES``. None takes the first that opens on this machine.
        threads: The number of CPU threads of one inference. None leaves it to the engine.

    Raises:
        DataError: The folder is not there or holds no images.
        CalibrationError: An answer is not finite, or ``f1`` finds no labels.
        BundleError: The bundle cannot be trusted or written.
        ImageError: An image cannot be read.
        EngineUnavailableError: The engine cannot run on this machine.

    Examples:
        >>> import flowedge
        >>> calibration = flowedge.calibrate("bottle.flowedge", "bottle/train/good")
        >>> calibration.bundle.manifest.graph("fp32").thresholds.image.method
        'quantile'
    """
    labelled = read_dataset(Path(data)) if request.method == "f1" else None
    return calibrate_bundle(
        open_bundle(path),
        good_images(Path(data)),
        request=request,
        labelled=labelled,
        frame_rate=frame_rate,
        engine=engine,
        threads=threads,
    )


def evaluate(detector: Detector, data: str | PathLike[str]) -> Evaluation:
    """Run a detector over a dataset in MVTec AD's layout and measure it with the detector's own thresholds.

    Args:
        detector: A detector that `flowedge.load` gave.
        data: The dataset's folder, with ``test/good``, ``test/DEFECT`` and ``ground_truth/DEFECT``.

    Raises:
        DataError: The folder is not a dataset, or a mask has another size than its image.
        ImageError: A mask cannot be read.
        CalibrationError: No image gave a finite score and map.

    Examples:
        >>> import flowedge
        >>> with flowedge.load("bottle.flowedge") as detector:
        ...     evaluation = flowedge.evaluate(detector, "bottle")
        >>> 0 <= evaluation.image_auroc <= 1
        True
    """
    return evaluation.evaluate(
        detector,
        read_dataset(Path(data)),
        thresholds=detector.thresholds,
        pixel_range=detector.bundle.manifest.pixel_range,
    )
