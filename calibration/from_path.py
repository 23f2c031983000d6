"""Functions that take folders: calibrate a bundle on images, and evaluate a detector on a dataset."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import msgspec

from flowedge.bundle import open_bundle
from flowedge.calibration import evaluation
from flowedge.calibration.dataset import read_dataset
from flowedge.calibration.evaluation_result import Evaluation
from flowedge.calibration.operating_points import with_commands
from flowedge.calibration.plan import CalibrationPlan, PlanResult, carry_out
from flowedge.calibration.threshold_history import ChangeOrigin
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.lanes import lanes_of

_DEFAULT = CalibrationPlan()
_ORIGIN = ChangeOrigin(command="flowedge.calibrate")


def calibrate(
    path: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    plan: CalibrationPlan = _DEFAULT,
    origin: ChangeOrigin = _ORIGIN,
    engine: str | None = None,
    threads: int | None = None,
) -> PlanResult:
    """Fit the score maxima and the thresholds of every precision of a bundle, and store them in the bundle.

    Args:
        path: The bundle's folder, which is replaced by its calibrated version or left as it was.
        data: A folder of images of good parts, or a dataset in MVTec AD's layout, whose ``train/good`` is taken. A plan
            with ``f1`` needs a dataset with labelled test images. A plan that only sets a limit of log NFA needs none.
        plan: The steps. The default fits the quantiles 0.99 of images and 0.9995 of pixels.
        origin: The author and the reason of the change, for the bundle's history of thresholds.
        engine: A name of ``flowedge.runtime.ENGINES``. By default the first that opens on this machine is taken.
        threads: The number of CPU threads of one inference. By default the engine decides.

    Raises:
        DataError: The folder is not there or holds no images.
        CalibrationError: An answer is not finite, or ``f1`` finds no labels.
        PrecisionError: A precision of the plan cannot pass its gate.
        BundleError: The bundle cannot be trusted or written.
        ImageError: An image cannot be read.
        EngineUnavailableError: The engine cannot run on this machine.

    Examples:
        >>> import flowedge
        >>> calibration = flowedge.calibrate("bottle.flowedge", "bottle/train/good")
        >>> calibration.bundle.manifest.graph("fp32").thresholds.image.method
        'quantile'
    """
    return carry_out(
        plan,
        open_bundle(path),
        None if data is None else Path(data),
        origin=origin,
        engine=engine,
        threads=threads,
        cache=None if plan.precisions is None else device_cache(),
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
        TypeError: ``detector`` is something else, such as the path of a bundle or the line of a pack.

    Examples:
        >>> import flowedge
        >>> with flowedge.load("bottle.flowedge") as detector:
        ...     evaluation = flowedge.evaluate(detector, "bottle")
        >>> 0 <= evaluation.image_auroc <= 1
        True
    """
    if not isinstance(detector, Detector):
        raise TypeError(
            f"a detector is evaluated, got {type(detector).__name__}. Give flowedge.load(BUNDLE), or "
            "line.detector(PRODUCT) for a product of a pack."
        )
    result = evaluation.evaluate(
        detector,
        read_dataset(Path(data)),
        thresholds=detector.thresholds,
        pixel_range=detector.bundle.manifest.pixel_range,
        lanes=lanes_of(detector.engine),
    )
    points = with_commands(result.operating_points, detector.bundle.path, detector.precision, str(data))
    return msgspec.structs.replace(result, operating_points=points)
