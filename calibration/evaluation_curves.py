"""Draw the curves of an evaluation: score histogram, ROC, precision over recall, and overlap of the defect regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.metrics import AUPRO_FPR_LIMIT, curve_from_scores
from flowedge.runtime.report.charts import Series, charts, histogram, lines
from flowedge.runtime.report.markup import Markup
from flowedge.runtime.report.shell import paragraph, section


def curves_section(
    good: Sequence[float],
    anomalous: Sequence[float],
    limit: float | None,
    overlap: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    unit: str,
) -> Markup:
    """Return the section of all curves. A curve that is not defined is left out.

    Args:
        good: The values of the good images. A larger value is more anomalous.
        anomalous: The values of the anomalous images.
        limit: The threshold of the values.
        overlap: The share of the normal pixels above each threshold, and the mean overlap of the regions there.
        unit: The name of the values.
    """
    groups = [("good", "good", good), ("anomalous", "bad", anomalous)]
    drawn = [
        histogram(
            "How often each score occurs",
            [Series(name=name, style=style, x=values) for name, style, values in groups if len(values)],
            unit,
            limit=limit,
        )
    ]
    if len(good) and len(anomalous):
        drawn += _image_curves(good, anomalous, limit)
    if overlap is not None:
        shares, regions = overlap
        inside = shares <= AUPRO_FPR_LIMIT
        # The curve ends at the limit exactly, as the integral does.
        x = [*shares[inside].tolist(), AUPRO_FPR_LIMIT]
        y = [*regions[inside].tolist(), float(np.interp(AUPRO_FPR_LIMIT, shares, regions))]
        drawn.append(
            lines(
                "Overlap of the defect regions",
                [Series(name="overlap", style="c0", x=x, y=y)],
                "share of the normal pixels that are marked",
                "mean share of a region that is marked",
                x_top=AUPRO_FPR_LIMIT,
                is_filled=True,
            )
        )
    words = []
    if len(good) and len(anomalous) and limit is not None:
        words.append("The circle is the threshold.")
    if overlap is not None:
        words.append("AUPRO is the filled area of the overlap, divided by 0.3.")
    return section("Curves", charts(*drawn), paragraph(" ".join(words), soft=True) if words else None)


def _image_curves(good: Sequence[float], anomalous: Sequence[float], limit: float | None) -> list[Markup]:
    """Draw ROC and precision over recall of the values that decide."""
    labels = [False] * len(good) + [True] * len(anomalous)
    curve = curve_from_scores([*good, *anomalous], labels)
    false_alarms = curve.negatives[::-1] / len(good)
    recall = curve.positives[::-1] / len(anomalous)
    called = curve.positives[::-1] + curve.negatives[::-1]
    # Without a verdict "anomalous" there is no precision.
    precision = curve.positives[::-1][called > 0] / called[called > 0]
    marks: list[tuple[float, float, str]] = []
    marks_of_precision: list[tuple[float, float, str]] = []
    if limit is not None:
        alarms, found = sum(one > limit for one in good), sum(one > limit for one in anomalous)
        marks.append((alarms / len(good), found / len(anomalous), "threshold"))
        if alarms + found:
            marks_of_precision.append((found / len(anomalous), found / (alarms + found), "threshold"))
    roc = Series(name="ROC", style="c0", x=false_alarms.tolist(), y=recall.tolist())
    pr = Series(name="precision", style="c0", x=recall[called > 0].tolist(), y=precision.tolist())
    return [
        lines(
            "ROC of the images", [roc], "share of the good images called anomalous", "detected", marks=marks
        ),
        lines("Precision and recall", [pr], "detected share (recall)", "precision", marks=marks_of_precision),
    ]
