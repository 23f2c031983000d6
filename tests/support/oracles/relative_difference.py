"""The difference of two arrays in proportion to the expected one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Compute the largest absolute difference over the largest magnitude expected. It is NaN where an array has one."""
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
    return float(float(difference) / np.maximum(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
