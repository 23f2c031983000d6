"""Compute AUROC, AUPRO, F1 and rates of image scores and of pixels, in bounded memory.

A larger value is more anomalous, and a value strictly above a threshold is called anomalous.

The exact metrics need all values sorted, and a test set has tens of millions of pixels. Only the order of the values
matters, so they are counted in bins of neighbouring float32 numbers. The bits of a float32, with the sign folded in,
are an integer that sorts as the number does. A histogram starts with one bin per number, which is exact. Each time more
than ``MAX_BINS`` bins are filled, the bins double in width. So the values' range need not be known, and maps in
1.2..2.9, near zero, or in 100.0..100.5 are resolved equally well.

Values that share a bin are treated as equal. So an AUROC is off by at most half the sum, over the bins, of the product
of the two classes' shares in the bin. AUPRO is off by at most the same sum with the regions' overlap for the anomalous
share. On 60 real CFLOW maps the bound is 1e-5, and the errors themselves are 7e-9 and 5e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_BINS: Final = 1 << 16
AUPRO_FPR_LIMIT: Final = 0.3
_SIGN: Final = np.uint32(1 << 31)


class ValueHistogram:
    """Weighted counts of finite float32 values, in order, in at most ``max_bins`` bins.

    The counts are exact while no more than ``max_bins`` distinct values were added. The memory is 12 bytes a bin,
    whatever the number of values. Adding takes a few times the size of the added array.

    Attributes:
        total: The sum of all weights.
    """

    def __init__(self, max_bins: int = MAX_BINS) -> None:
        self.total = 0.0
        self._max_bins = max_bins
        self._shift = 0
        self._bins = np.empty(0, np.uint32)
        self._weights = np.empty(0, np.float64)
        self._smallest = np.inf
        self._largest = -np.inf

    def add(self, values: ArrayLike, weights: NDArray[np.float64] | None = None) -> None:
        """Count values.

        Args:
            values: An array of any shape, which is rounded to float32.
            weights: An array of the values' shape, not negative. By default each value counts once.

        Raises:
            ValueError: A value is NaN or infinite (as float32), or the shapes differ.
        """
        with np.errstate(over="ignore"):
            flat = np.asarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        if not np.isfinite(flat).all():
            raise ValueError("a histogram takes finite float32 values. Leave the others out, and count them")
        if weights is not None and weights.size != flat.size:
            raise ValueError(f"got {flat.size} values and {weights.size} weights")
        keys = _keys_from_floats(flat) >> np.uint32(self._shift)
        if weights is None:
            bins, counts = np.unique(keys, return_counts=True)
            sums = counts.astype(np.float64)
        else:
            bins, sums = _summed(keys, weights.ravel())
        self._bins, self._weights = _summed(
            np.concatenate([self._bins, bins]), np.concatenate([self._weights, sums])
        )
        while self._bins.size > self._max_bins:
            self._shift += 1
            self._bins, self._weights = _summed(self._bins >> np.uint32(1), self._weights)
        self.total += float(sums.sum())
        self._smallest = min(self._smallest, float(flat.min()))
        self._largest = max(self._largest, float(flat.max()))

    def value_at(self, rank: int) -> float:
        """Return the value of a rank in ascending order (0 is the smallest), rounded up to its bin's upper edge.

        At most the values of larger rank lie strictly above the returned value, also after the rounding.

        Raises:
            ValueError: There is no such rank.
        """
        if not 0 <= rank < self.total:
            raise ValueError(f"rank must be in 0..{self.total:.0f} (excluded), got {rank}")
        cumulative = np.cumsum(self._weights)
        index = int(np.searchsorted(cumulative, rank, side="right"))
        return float(_upper_edges(self._bins[index : index + 1], self._shift, self._largest)[0])

    def share_above(self, threshold: float) -> float | None:
        """Return the share of the weight above a threshold, in 0..1, or None without values.

        Where bins were widened, the whole bin that holds the threshold counts as above it, unless the
        threshold is the bin's upper edge (as fitted ones are).
        """
        if self.total == 0.0:
            return None
        edges = _upper_edges(self._bins, self._shift, self._largest)
        return float(self._weights[edges > threshold].sum() / self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The counts of values strictly above each threshold that makes a difference.

    Attributes:
        thresholds: ``(n + 1,)`` float64, ascending. All values are above the first and no value is above the last.
        negatives: ``(n + 1,)`` float64, the number of normal values above the threshold.
        positives: ``(n + 1,)`` float64, the number of anomalous values above the threshold.
    """

    thresholds: NDArray[np.float64]
    negatives: NDArray[np.float64]
    positives: NDArray[np.float64]

    @property
    def has_both_classes(self) -> bool:
        """False when one class is missing, so that no metric is defined."""
        return bool(self.negatives[0] > 0 and self.positives[0] > 0)

    def auroc(self) -> float | None:
        """Return P(anomalous > normal) + P(equal) / 2, the normalised Mann-Whitney U, or None with one class only."""
        if not self.has_both_classes:
            return None
        area = _area(self.negatives[::-1], self.positives[::-1])
        return area / float(self.negatives[0] * self.positives[0])

    def best_f1(self) -> tuple[float, float] | None:
        """Return the largest F1 over all thresholds, and the largest threshold that reaches it.

        The threshold is the largest value that is not called anomalous. The result is None with one class only.
        """
        if not self.has_both_classes:
            return None
        f1 = 2 * self.positives / (self.positives + self.negatives + self.positives[0])
        best = f1.size - 1 - int(np.argmax(f1[::-1]))
        return float(f1[best]), float(self.thresholds[best])


def curve_from_scores(scores: ArrayLike, is_anomalous: ArrayLike) -> Curve:
    """Return the exact curve of a few scores.

    Args:
        scores: ``(n,)`` finite scores, at least one. The scores are compared as float64.
        is_anomalous: ``(n,)`` booleans.

    Raises:
        ValueError: There is no score, a score is NaN or infinite, or the shapes differ.
    """
    values = np.asarray(scores, np.float64)
    labels = np.asarray(is_anomalous, np.bool_)
    if values.ndim != 1 or values.size == 0 or values.shape != labels.shape:
        raise ValueError(f"need as many labels as scores, at least one, got {labels.shape}, {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a curve takes finite scores. Leave the others out, and count them")
    distinct, index = np.unique(values, return_inverse=True)
    return Curve(
        thresholds=np.concatenate([[_just_below(float(distinct[0]))], distinct]),
        negatives=_above(np.bincount(index[~labels], minlength=distinct.size)),
        positives=_above(np.bincount(index[labels], minlength=distinct.size)),
    )


def curve_from_histograms(negatives: ValueHistogram, positives: ValueHistogram) -> Curve:
    """Return the curve of streamed values, which is exact while both histograms are."""
    thresholds, (above_negatives, above_positives) = _aligned((negatives, positives))
    return Curve(thresholds=thresholds, negatives=above_negatives, positives=above_positives)


class PixelMetrics:
    """The counts for pixel AUROC, AUPRO and F1 over any number of anomaly maps, in about 5 MB.

    The regions of AUPRO (P. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1)
    are the connected components of each mask, neighbours by edge or by corner. A pixel of a region of ``a``
    pixels weighs 1/a, so the weight above a threshold is the sum of the regions' overlaps, and no region has
    to be remembered.

    Attributes:
        normal: The values of the normal pixels.
        defect: The values of the defect pixels.
        regions: The number of connected components of all masks.
    """

    def __init__(self) -> None:
        self.normal = ValueHistogram()
        self.defect = ValueHistogram()
        self.regions = 0
        self._overlap = ValueHistogram()

    def add(self, anomaly_map: NDArray[np.float32], defects: NDArray[np.bool_] | None) -> None:
        """Count one image's pixels.

        Args:
            anomaly_map: ``(H, W)``, finite. A larger value is more anomalous.
            defects: ``(H, W)``, true on defect pixels. The value is None for an image without a defect.

        Raises:
            ValueError: The shapes differ, or a value is not finite.
        """
        if defects is None:
            self.normal.add(anomaly_map)
            return
        if defects.shape != anomaly_map.shape:
            raise ValueError(f"the mask is {defects.shape}, the anomaly map {anomaly_map.shape}")
        labels_with_background, labels = cv2.connectedComponents(defects.astype(np.uint8), connectivity=8)
        values, region = anomaly_map[defects], labels[defects]
        self.normal.add(anomaly_map[~defects])
        self.defect.add(values)
        self._overlap.add(values, 1.0 / np.bincount(region)[region])  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.regions += labels_with_background - 1

    def curve(self) -> Curve:
        """Return the curve of normal against defect pixels."""
        return curve_from_histograms(self.normal, self.defect)

    def overlap_curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the curve whose area AUPRO is, or None without a normal pixel or without a region.

        Returns:
            The share of the normal pixels above each threshold, ascending, and the mean overlap of the regions there.
        """
        if self.regions == 0 or self.normal.total == 0.0:
            return None
        _, (normal, overlap) = _aligned((self.normal, self._overlap))
        return normal[::-1] / self.normal.total, overlap[::-1] / self.regions

    def aupro(self) -> float | None:
        """Return the area under the regions' mean overlap against the share of normal pixels above the threshold.

        The integral goes up to a share of 0.3 and is divided by 0.3, as in the paper. The result is in 0..1, or None
        without a normal pixel or without a region.
        """
        curve = self.overlap_curve()
        if curve is None:
            return None
        false_alarms, recall = curve
        inside = int(np.searchsorted(false_alarms, AUPRO_FPR_LIMIT, side="right"))
        at_limit = np.interp(
            AUPRO_FPR_LIMIT, false_alarms[inside - 1 : inside + 1], recall[inside - 1 : inside + 1]
        )
        area = _area(np.append(false_alarms[:inside], AUPRO_FPR_LIMIT), np.append(recall[:inside], at_limit))
        return area / AUPRO_FPR_LIMIT


def _aligned(
    histograms: Sequence[ValueHistogram],
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return the thresholds of all histograms together, and the weight of each histogram strictly above them."""
    shift = max(h._shift for h in histograms)
    coarsened = [_summed(h._bins >> np.uint32(shift - h._shift), h._weights) for h in histograms]
    bins = np.unique(np.concatenate([own for own, _ in coarsened]))
    edges = _upper_edges(bins, shift, max(h._largest for h in histograms))
    above = []
    for own, sums in coarsened:
        weights = np.zeros(bins.size)
        weights[np.searchsorted(bins, own)] = sums
        above.append(_above(weights))
    return np.concatenate([[_just_below(min(h._smallest for h in histograms))], edges]), above


def _keys_from_floats(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return integers that sort as the values do.

    Each is 2^31 plus or minus the bits of the magnitude, so that both zeros are 2^31.
    """
    bits = values.view(np.uint32)
    return np.where(bits & _SIGN, _SIGN - (bits ^ _SIGN), bits + _SIGN)


def _upper_edges(bins: NDArray[np.uint32], shift: int, largest: float) -> NDArray[np.float64]:
    """Return the largest float32 of each bin, but none above the largest value that was added."""
    keys = (((bins.astype(np.uint64) + 1) << np.uint64(shift)) - 1).astype(np.uint32)
    bits = np.where(keys & _SIGN, keys ^ _SIGN, (_SIGN - keys) | _SIGN)
    # The bin of the largest finite numbers also spans infinity and NaN, which fmin cuts off.
    return np.fmin(bits.view(np.float32), np.float32(largest)).astype(np.float64)


def _summed(
    keys: NDArray[np.uint32], weights: NDArray[np.float64]
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Return the distinct keys in ascending order, and the sum of the weights of each key."""
    if keys.size == 0:
        return keys, weights
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], np.add.reduceat(weights[order], starts)


def _above(weights: NDArray[np.float64] | NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the sum of the weights from each bin upwards. The last element is 0, for no bin."""
    return np.append(np.cumsum(weights[::-1].astype(np.float64))[::-1], 0.0)


def _just_below(value: float) -> float:
    """Return a float32 below the value, so that a comparison in either precision finds it smaller."""
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the trapezoidal integral of y over an ascending x."""
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2)
