"""Compute what an image threshold costs on counted images: false alarms and detections, each with an interval."""

from __future__ import annotations

import decimal
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from flowedge.bundle_files import pack_around
from flowedge.calibration.intervals import fitted_rate_interval, rate_interval
from flowedge.calibration.metrics import Curve, curve_from_scores
from flowedge.calibration.threshold import FittedMethod
from flowedge.manifest_bounds import LONGEST_REASON
from flowedge.text import images_words

FALSE_ALARM_RATES: Final = (0.01, 0.05)
"""The false-alarm rates that every table of operating points has, where the good images are enough for them."""

NO_FALSE_ALARM: Final = "no false alarm"
"""The name of the operating point at the largest good score, where fewer good images than 1 / rate were counted."""

NOW: Final = "now"
"""The name of the operating point at the threshold that is in the bundle."""

BEST_F1: Final = "best F1"
"""The name of the operating point with the largest F1 of the counted images."""

_DIGITS: Final = 5
_LARGEST_LOG_NFA: Final = 1e6  # the bound of the manifest


class CountedRate(msgspec.Struct, frozen=True, kw_only=True):
    """A rate that was counted on images, with its interval of 95 % confidence.

    Attributes:
        hits: The number of images that count.
        total: The number of images.
        rate: The share of the images that count, in 0..1. The value is None without images.
        low: The lower limit of the interval, in 0..1.
        high: The upper limit of the interval, in 0..1.
    """

    hits: int
    total: int
    rate: float | None
    low: float
    high: float


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One image threshold, with the false alarms and the detections that it gives on counted images.

    Attributes:
        name: ``"now"`` for the threshold of the bundle, ``"1 % false alarms"`` and alike for the smallest threshold
            that leaves at most this share of the good images above it, ``"no false alarm"`` for the largest good
            score where the good images are too few for such a share, or ``"best F1"``.
        threshold: The image threshold. The value is None where the limit of log NFA decides.
        log_nfa: The limit of log NFA. The value is None where the image threshold decides.
        false_alarms: The good images that are called anomalous.
        detections: The anomalous images that are called anomalous. The value is None without anomalous images.
        chosen_here: True when the threshold was chosen on the images that were counted, so that the counts are
            optimistic. The interval of the false alarms allows for the choice, except for ``"best F1"``.
        command: The command that sets this threshold. The text is empty for the threshold that is set already, and
            where no bundle is known.
    """

    name: str
    threshold: float | None
    log_nfa: float | None = None
    false_alarms: CountedRate
    detections: CountedRate | None
    chosen_here: bool
    command: str = ""


def operating_points(
    curve: Curve, now: float | None, *, fitted_by: FittedMethod | None = None
) -> tuple[OperatingPoint, ...]:
    """Return the operating points of image scores: now, at each rate of `FALSE_ALARM_RATES`, and at the best F1.

    A point is left out where it is not defined: the present one without a threshold, a rate without good images, and
    the best F1 without both classes. Rates below one of the good images have one point in common, `NO_FALSE_ALARM`,
    because no threshold shows such a rate on so few images. Each chosen threshold is a short decimal number that calls
    the same of the counted images anomalous as the exact score does.

    Args:
        curve: The counts of the good (negative) and of the anomalous (positive) images above each score.
        now: The image threshold that is in the bundle. The value is None where there is none.
        fitted_by: The method that fitted ``now`` on these very images. The value is None where other images were used.
    """
    good = int(curve.negatives[0])
    points: list[OperatingPoint] = []
    if now is not None:
        by_rank = fitted_by in ("quantile", "target-fpr")
        points.append(_point(curve, NOW, now, chosen_here=fitted_by is not None, is_order_statistic=by_rank))
    if good:
        # Rates with the same name have the same threshold, the largest good score.
        rates = {rate_name(rate) if rate * good >= 1 else NO_FALSE_ALARM: rate for rate in FALSE_ALARM_RATES}
        for name, rate in rates.items():
            index = int(np.argmax(curve.negatives / good <= rate))
            chosen = _short_threshold(curve, index)
            points.append(_point(curve, name, chosen, chosen_here=True, is_order_statistic=True))
    best = curve.best_f1()
    if best is not None:
        chosen = _short_threshold(curve, int(np.searchsorted(curve.thresholds, best[1])))
        points.append(_point(curve, BEST_F1, chosen, chosen_here=True, is_order_statistic=False))
    return tuple(points)


def nfa_operating_points(
    log_nfas: ArrayLike, is_anomalous: ArrayLike, now: float
) -> tuple[OperatingPoint, ...]:
    """Return the operating points where the number of false alarms decides, as `operating_points` does for scores.

    Args:
        log_nfas: ``(n,)`` log10 of the number of false alarms of each image's surest pixel, at least one.
        is_anomalous: ``(n,)`` booleans.
        now: The limit of log NFA that is in the bundle.
    """
    scores = -np.clip(np.asarray(log_nfas, np.float64), -_LARGEST_LOG_NFA, _LARGEST_LOG_NFA)
    points = operating_points(curve_from_scores(scores, is_anomalous), -now)
    return tuple(
        msgspec.structs.replace(point, threshold=None, log_nfa=-point.threshold + 0.0)
        for point in points
        if point.threshold is not None
    )


def with_commands(
    points: Sequence[OperatingPoint], bundle: Path, precision: str, data: str
) -> tuple[OperatingPoint, ...]:
    """Give each operating point the command that sets its threshold, except the one that is set already.

    Args:
        points: The operating points.
        bundle: The bundle's path as the user named it. A product of a pack stands for the bundle that was packed, which
            is named after it.
        precision: The precision of the graph that gave the scores.
        data: A word for the images, such as their folder, for the reason in the bundle's history.
    """
    around = pack_around(bundle)
    if around is not None and around[1]:
        bundle = Path(f"{around[1]}.flowedge")
    return tuple(
        point if point.name == NOW else _with_command(point, bundle, precision, data) for point in points
    )


def rate_name(rate: float) -> str:
    """Return the name of the operating point at a false-alarm rate, such as ``"1 % false alarms"``."""
    return f"{100 * rate:g} % false alarms"


def _with_command(point: OperatingPoint, bundle: Path, precision: str, data: str) -> OperatingPoint:
    value = point.threshold if point.threshold is not None else point.log_nfa
    option = "--image" if point.threshold is not None else "--log-nfa"
    images = point.false_alarms.total + (0 if point.detections is None else point.detections.total)
    reason = f"{point.name} on {images_words(images)} of {data}"
    words = ("flowedge", "threshold", "set", str(bundle), option, repr(value), "--precision", precision)
    return msgspec.structs.replace(point, command=shlex.join((*words, "--reason", reason[:LONGEST_REASON])))


def _point(
    curve: Curve, name: str, threshold: float, *, chosen_here: bool, is_order_statistic: bool
) -> OperatingPoint:
    """Count the images above a threshold.

    Args:
        curve: The counts above each score.
        name: The point's name.
        threshold: The image threshold.
        chosen_here: True when the threshold was chosen on the counted images.
        is_order_statistic: True when the threshold is the score of the good image of a rank that was fixed before.
    """
    index = max(int(np.searchsorted(curve.thresholds, threshold, side="right")) - 1, 0)
    alarms, good = int(curve.negatives[index]), int(curve.negatives[0])
    found, anomalous = int(curve.positives[index]), int(curve.positives[0])
    interval = fitted_rate_interval if is_order_statistic and alarms < good else rate_interval
    return OperatingPoint(
        name=name,
        threshold=threshold,
        false_alarms=_counted(alarms, good, interval(alarms, good)),
        detections=_counted(found, anomalous, rate_interval(found, anomalous)) if anomalous else None,
        chosen_here=chosen_here,
    )


def _counted(hits: int, total: int, interval: tuple[float, float]) -> CountedRate:
    rate = hits / total if total else None
    return CountedRate(hits=hits, total=total, rate=rate, low=interval[0], high=interval[1])


def _short_threshold(curve: Curve, index: int) -> float:
    """Return a short decimal number from a threshold of the curve up to the next, which it does not reach."""
    value = float(curve.thresholds[index])
    following = float(curve.thresholds[index + 1]) if index + 1 < curve.thresholds.size else math.inf
    for digits in range(_DIGITS, 18):
        rounding = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
        rounded = float(rounding.create_decimal(value))
        if value <= rounded < following:
            return rounded
    return value
