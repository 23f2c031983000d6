"""Compare two arrays in proportion to the expected one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference over the largest expected magnitude, or NaN where an array holds NaN."""
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
    return float(float(difference) / np.maximum(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
