"""Define the result of a frame of which an area was judged."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.geometry import map_to_frame
from flowedge.runtime.area.area import Area
from flowedge.runtime.result import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AreaResult(Result):
    """The findings in the area of one frame.

    Score, verdict, mask, regions and pictures come from the area alone. The maps over the frame are NaN outside of it.

    Attributes:
        area: The pixels of the frame that were judged.
        cells: ``(h, w)``, True for the cells of ``network_map`` that belong to the area.
        is_stitched: True where ``network_map`` was put together from tiles and lies over the frame, pixel by pixel.
            Such a result has no levels.
    """

    area: Area
    cells: NDArray[np.bool_]
    is_stitched: bool = False

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """``(H, W)`` float32, the map laid over the frame. The map is NaN outside of the area."""
        return self.area.only_inside(self._over_frame(self.network_map))

    @property
    def log_nfa(self) -> float | None:
        """The area's lowest log10 number of false alarms, if there is a map of it. Below the limit is anomalous."""
        return None if self.network_log_nfa is None else float(self.network_log_nfa[self.cells].min())

    @cached_property
    def log_nfa_map(self) -> NDArray[np.float32] | None:
        """``(H, W)`` float32, ``network_log_nfa`` laid over the frame. The map is NaN outside of the area."""
        if self.network_log_nfa is None:
            return None
        return self.area.only_inside(self._over_frame(self.network_log_nfa.astype(np.float32)))

    def _over_frame(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values if self.is_stitched else map_to_frame(values, self.preprocessing, self.frame_size)


def in_area(result: Result, area: Area, cells: NDArray[np.bool_], *, is_stitched: bool = False) -> AreaResult:
    """Make the result of an area from a result of the frame whose score and verdict are already those of the area."""
    values: dict[str, Any] = {field.name: getattr(result, field.name) for field in fields(result)}
    return AreaResult(**values, area=area, cells=cells, is_stitched=is_stitched)
