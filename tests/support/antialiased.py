"""Give antialiased resampling as a dense matrix, for comparison with torch and PIL."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowedge.resampling import Arithmetic, Kernel, antialiased_taps, dense_matrix


def antialiased_matrix(
    outputs: int, inputs: int, *, kernel: Kernel, arithmetic: Arithmetic = "float64"
) -> NDArray[np.float64]:
    """Return the ``[outputs, inputs]`` weights of `antialiased_taps`."""
    return dense_matrix(antialiased_taps(outputs, inputs, kernel, arithmetic), inputs, np.float64)
