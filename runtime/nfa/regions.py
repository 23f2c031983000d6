"""Find the connected regions of detected pixels in a map of log NFA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowedge.runtime.regions import Region, find_regions


def detected_regions(log_nfa: NDArray[np.floating], limit: float = 0.0) -> tuple[Region, ...]:
    """Return the regions whose log NFA is below a limit, surest first.

    The peak of a region is the largest value of ``-log_nfa`` in it.

    Args:
        log_nfa: ``(H, W)``, from `tree_log_nfa` or `block_log_nfa`. NaN, which stands outside of a crop, belongs to no
            region.
        limit: Log10 of the number of false alarms that are expected per image.

    Examples:
        >>> import numpy as np
        >>> [region.area_px for region in detected_regions(np.array([[-2.0, 1.0], [1.0, -3.0]]))]
        [1, 1]
    """
    return find_regions(log_nfa < limit, -log_nfa, log_nfa=log_nfa)
