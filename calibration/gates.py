"""Compare a graph of lower precision with the fp32 graph: maps, ranking of scores, verdicts and metrics.

The numbers always differ a little. The gate asks whether any *verdict* would differ on a line that calibrates the
graph of lower precision and runs it. So each precision gets the threshold that its own scores of good images give.

The gate keeps two numbers of each image and sums over all images. The gate keeps no map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.agreement import PairMoments, rank_correlation
from flowedge.calibration.compared_frames import ComparedFrame, compared_frames, naming
from flowedge.calibration.dataset import Dataset
from flowedge.calibration.gate_report import GateLimits, GateQuantity, GateReport
from flowedge.calibration.masks import mask_on_map
from flowedge.calibration.metrics import PixelMetrics, curve_from_scores
from flowedge.calibration.tally import LARGEST_SCORE, Detection
from flowedge.calibration.threshold import fit_threshold
from flowedge.errors import CalibrationError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.verify import Check

Detect: TypeAlias = Callable[[NDArray[np.uint8]], Detection]

# The product 0.07 * 100 is a little more than 7 in floating point.
ROUNDING: Final = 1e-9


class Gate:
    """Compare the answers of two precisions image by image. The kinds of images may come in any order."""

    def __init__(self, limits: GateLimits) -> None:
        self._limits = limits
        self._counts = {"good": 0, "defect": 0, "labelled": 0}
        self._not_finite = 0
        self._scores: list[_Scores] = []
        self._pixels = PairMoments()
        self._good_pixels = PairMoments()
        self._worst_correlation = 1.0
        self._errors: list[tuple[float, float]] = []
        self._synthetic = (PixelMetrics(), PixelMetrics())
        self._labelled = (PixelMetrics(), PixelMetrics())
        self._has_masks = True
        self._self_test: tuple[Check, ...] = ()

    def add_self_test(self, checks: Iterable[Check]) -> None:
        """Take the outcome of the bundle's self-test on the converted graph, which the report then gives as well."""
        self._self_test += tuple(checks)

    def add(self, frame: ComparedFrame, fp32: Detection, converted: Detection) -> None:
        """Compare the answers on a frame of any kind.

        Args:
            frame: The frame, of which the label and the mask are read.
            fp32: The fp32 graph's answer.
            converted: The converted graph's answer on the same frame.

        Raises:
            CalibrationError: The fp32 graph's answer is not finite.
            ValueError: The maps differ in shape.
        """
        if frame.is_anomalous is not None:
            self.add_labelled(fp32, converted, is_anomalous=frame.is_anomalous, mask=frame.mask)
        elif frame.mask is not None:
            self.add_defect(fp32, converted, frame.mask)
        else:
            self.add_good(fp32, converted)

    def add_good(self, fp32: Detection, converted: Detection) -> None:
        """Compare the answers on a good image.

        Args:
            fp32: The fp32 graph's answer.
            converted: The converted graph's answer on the same frame.

        Raises:
            CalibrationError: The fp32 graph's answer is not finite.
            ValueError: The maps differ in shape.
        """
        if self._compare("good", fp32, converted):
            for metrics, one in zip(self._synthetic, (fp32, converted), strict=True):
                metrics.add(one.network_map, None)

    def add_defect(self, fp32: Detection, converted: Detection, mask: NDArray[np.bool_]) -> None:
        """Compare the answers on a synthetic defect.

        Args:
            fp32: The fp32 graph's answer.
            converted: The converted graph's answer on the same frame.
            mask: ``(H, W)``, of the frame's size, true on the defect.

        Raises:
            CalibrationError: The fp32 graph's answer is not finite.
            ValueError: The maps differ in shape.
        """
        if self._compare("defect", fp32, converted):
            _add_pixels(self._synthetic, fp32, converted, mask)

    def add_labelled(
        self,
        fp32: Detection,
        converted: Detection,
        *,
        is_anomalous: bool,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compare the answers on an image of a test set.

        Args:
            fp32: The fp32 graph's answer.
            converted: The converted graph's answer on the same frame.
            is_anomalous: The image's label.
            mask: ``(H, W)``, of the frame's size, true on the defect. Give None for a good image. One anomalous image
                without a mask leaves the report without the metrics of pixels.

        Raises:
            CalibrationError: The fp32 graph's answer is not finite.
            ValueError: The maps differ in shape.
        """
        if self._compare("labelled", fp32, converted, is_anomalous=is_anomalous):
            self._has_masks &= mask is not None or not is_anomalous
            _add_pixels(self._labelled, fp32, converted, mask)

    def report(self) -> GateReport:
        """Report on the images that were added so far.

        Raises:
            CalibrationError: There is no good image to fit the thresholds on.
        """
        if self._counts["good"] == 0:
            raise CalibrationError(
                "the gate needs at least one good image to fit the thresholds on, got none. Give good images."
            )
        quantities = tuple(self._quantities())
        return GateReport(
            passed=all(quantity.passed for quantity in quantities),
            limits=self._limits,
            good_images=self._counts["good"],
            defect_images=self._counts["defect"],
            labelled_images=self._counts["labelled"],
            quantities=quantities,
        )

    def _compare(
        self, kind: str, fp32: Detection, converted: Detection, *, is_anomalous: bool | None = None
    ) -> bool:
        """Count an image. Return False where the converted graph's answer is not finite and has no use."""
        if not _is_finite(fp32):
            raise CalibrationError(
                f"the fp32 answer for a {kind} image is not finite, so nothing can be compared with it. Run flowedge "
                "verify, and remove the image if that passes."
            )
        if converted.network_map.shape != fp32.network_map.shape:
            raise ValueError(
                f"the maps must have one shape, got {fp32.network_map.shape} and {converted.network_map.shape}"
            )
        self._counts[kind] += 1
        if not _is_finite(converted):
            self._not_finite += 1
            return False
        self._scores.append(_Scores(kind, is_anomalous, fp32.score, converted.score))
        image = PairMoments()
        image.add(fp32.network_map, converted.network_map)
        self._pixels.merge(image)
        if kind == "good":
            self._good_pixels.merge(image)
        self._worst_correlation = min(self._worst_correlation, image.correlation())
        error = np.abs(converted.network_map.astype(np.float64) - fp32.network_map).max()
        self._errors.append((float(error), image.first_deviation()))
        return True

    def _quantities(self) -> Iterator[GateQuantity]:
        limits = self._limits
        compared = sum(self._counts.values())
        yield GateQuantity(
            name="not_finite",
            value=self._not_finite,
            limit=0,
            passed=self._not_finite == 0,
            summary=f"{self._not_finite} of {compared} images have a score or a map that is NaN or infinite",
        )
        if self._self_test:
            yield self_test_quantity(self._self_test)
        good = [one for one in self._scores if one.kind == "good"]
        if not good:
            return
        correlation = self._pixels.correlation()
        yield _at_least("map_correlation", "map correlation", correlation, limits.map_correlation)
        yield _reported(
            "worst_image_correlation", "smallest map correlation of an image", self._worst_correlation
        )
        yield _at_most(
            "map_error", "largest map error in standard deviations", self._error(), limits.map_error
        )
        ranks = rank_correlation([one.fp32 for one in self._scores], [one.converted for one in self._scores])
        yield _at_least("rank_agreement", "rank agreement", ranks, limits.rank_agreement)
        flipped = self._flipped(good)
        images = len(self._scores)
        yield _at_most(
            "flips",
            f"verdicts that flip ({flipped} of {images})",
            flipped / images,
            math.ceil(limits.flips * images - ROUNDING) / images,
        )
        yield from self._metric_changes()

    def _error(self) -> float:
        spread = self._good_pixels.first_deviation()
        units = ((error, max(spread, own)) for error, own in self._errors)
        return max((error / unit if unit else math.inf) if error else 0.0 for error, unit in units)

    def _flipped(self, good: Sequence[_Scores]) -> int:
        quantile = self._limits.quantile
        thresholds = [
            fit_threshold(scores, method="quantile", parameter=quantile).threshold.value
            for scores in ([one.fp32 for one in good], [one.converted for one in good])
        ]
        return sum((one.fp32 > thresholds[0]) != (one.converted > thresholds[1]) for one in self._scores)

    def _metric_changes(self) -> Iterator[GateQuantity]:
        limits = self._limits
        labelled = [one for one in self._scores if one.kind == "labelled"]
        labels = [bool(one.is_anomalous) for one in labelled]
        if any(labels) and not all(labels):
            aurocs = tuple(
                curve_from_scores(scores, labels).auroc()
                for scores in ([one.fp32 for one in labelled], [one.converted for one in labelled])
            )
            swap = 1 / (sum(labels) * (len(labels) - sum(labels)))
            yield _change("image_auroc", "image AUROC", aurocs, max(limits.image_auroc, swap))
            if self._has_masks:
                yield _change("pixel_auroc", "pixel AUROC", _pixel_aurocs(self._labelled), limits.pixel_auroc)
                yield _change("aupro", "AUPRO", _aupros(self._labelled), limits.aupro)
        if self._synthetic[0].regions:
            yield _change(
                "synthetic_pixel_auroc",
                "pixel AUROC of synthetic defects",
                _pixel_aurocs(self._synthetic),
                None,
            )
            yield _change("synthetic_aupro", "AUPRO of synthetic defects", _aupros(self._synthetic), None)


def compare(
    fp32_detector: Detect,
    converted_detector: Detect,
    images: Sequence[Path],
    defects_per_image: int,
    limits: GateLimits,
    labelled: Dataset | None = None,
    reports: Reports = SILENT,
    *,
    pixel_range: PixelRange | None = None,
) -> GateReport:
    """Compare two detectors on good images, on synthetic defects made from them, and on labelled images.

    Args:
        fp32_detector: A detector of the fp32 graph, from an ``(H, W, 3)`` uint8 RGB frame to its answer.
        converted_detector: A detector of the graph of lower precision.
        images: Files of images of good parts, of at least 16x16 pixels. The files are read one at a time.
        defects_per_image: The number of synthetic defects made from each good image. The kinds of defects take turns.
            The image's position decides its defects, so every comparison of the same images has the same defects.
        limits: The limits that the graph of lower precision must keep.
        labelled: Labelled images, with masks where the metrics of pixels are wanted.
        reports: Receives the progress, one unit for each image file.
        pixel_range: The manifest's declaration of deep images, or None.

    Raises:
        CalibrationError: There are no good images, or an answer of the fp32 graph is not finite.
        DataError: A mask has another size than its image.
        ImageError: An image or a mask cannot be read, or is too small.
        ValueError: ``defects_per_image`` is negative.
    """
    gate = Gate(limits)
    for one in compared_frames(images, defects_per_image, labelled, reports, pixel_range=pixel_range):
        with naming(one.path):
            gate.add(one, fp32_detector(one.frame), converted_detector(one.frame))
    return gate.report()


class _Scores(NamedTuple):
    """The two scores of one image. Only a labelled image has ``is_anomalous``."""

    kind: str
    is_anomalous: bool | None
    fp32: float
    converted: float


def _is_finite(answer: Detection) -> bool:
    return abs(answer.score) <= LARGEST_SCORE and bool(np.isfinite(answer.network_map).all())


def _add_pixels(
    metrics: tuple[PixelMetrics, PixelMetrics],
    fp32: Detection,
    converted: Detection,
    mask: NDArray[np.bool_] | None,
) -> None:
    height, width = fp32.network_map.shape
    on_map = None if mask is None else mask_on_map(mask, fp32.preprocessing, (height, width))
    metrics[0].add(fp32.network_map, on_map)
    metrics[1].add(converted.network_map, on_map)


def _pixel_aurocs(metrics: tuple[PixelMetrics, PixelMetrics]) -> tuple[float | None, ...]:
    return tuple(one.curve().auroc() for one in metrics)


def _aupros(metrics: tuple[PixelMetrics, PixelMetrics]) -> tuple[float | None, ...]:
    return tuple(one.aupro() for one in metrics)


def self_test_quantity(checks: Sequence[Check]) -> GateQuantity:
    """Return the check of the self-test that is nearest to its limit, or farthest beyond it."""
    worst = max(checks, key=lambda check: (math.isnan(check.value), check.value / check.limit))
    return _at_most("self_test", f"self-test, {worst.name}", worst.value, worst.limit)


def _at_least(name: str, noun: str, value: float, limit: float) -> GateQuantity:
    return GateQuantity(
        name=name,
        value=value,
        limit=limit,
        passed=value >= limit,
        summary=f"{noun}: {value:{'.6g' if value >= limit else '.10g'}}, must be at least {limit:g}",
    )


def _at_most(name: str, noun: str, value: float, limit: float) -> GateQuantity:
    return GateQuantity(
        name=name,
        value=value if math.isfinite(value) else None,
        limit=limit,
        passed=value <= limit,
        summary=f"{noun}: {value:.3g}, must be at most {limit:.4g}",
    )


def _reported(name: str, noun: str, value: float) -> GateQuantity:
    return GateQuantity(name=name, value=value, limit=None, passed=True, summary=f"{noun}: {value:.6g}")


def _change(name: str, noun: str, values: tuple[float | None, ...], limit: float | None) -> GateQuantity:
    """Compare the change of a metric with its limit. An undefined metric passes."""
    before, after = values
    if before is None or after is None:
        return GateQuantity(name=name, value=None, limit=limit, passed=True, summary=f"{noun}: not defined")
    change = abs(after - before)
    summary = f"{noun}: {before:.4f} in fp32, {after:.4f} in this precision"
    if limit is None:
        return GateQuantity(name=name, value=change, limit=None, passed=True, summary=summary)
    return GateQuantity(
        name=name,
        value=change,
        limit=limit,
        passed=change <= limit,
        summary=f"{summary}; may change by {limit:.4g}",
    )
