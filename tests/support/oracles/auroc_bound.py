"""Bound the error of an AUROC whose values share bins."""

from __future__ import annotations

import numpy as np

from flowedge.calibration.metrics import Curve


def auroc_error(curve: Curve) -> float | None:
    """Return the most that values in one bin can have moved ``curve.auroc()``, or None with one class only.

    Values that really are equal count as well, so this is a bound and not an estimate.
    """
    if not curve.has_both_classes:
        return None
    shared = np.diff(curve.negatives) @ np.diff(curve.positives)
    return float(shared / (2 * curve.negatives[0] * curve.positives[0]))
