"""Read the values that the good images of a calibration had, which a station compares its frames with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

import msgspec
import numpy as np

from flowedge.bundle import Bundle
from flowedge.errors import FlowEdgeError
from flowedge.frame_quantities import FRAME_QUANTITIES, LARGEST_QUANTITY
from flowedge.manifest_bounds import Value
from flowedge.runtime.station.watch.quantities import PICTURE, SCORE, picture_values

Quantity: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_QUANTITY)]

CALIBRATION: Final = "calibration"
LINE: Final = "line"

_RECORD: Final = "calibration.json"
_MOST: Final = 100_000  # values in a bundle, which is untrusted
_FEWEST: Final = 30  # values below which a reference shows too little


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The values of the good images by the name of the quantity.

    Attributes:
        values: The values. A quantity without a fitting reference is missing.
        problem: The reason why quantities are missing, as a clause.
    """

    values: Mapping[str, list[float]] = {}
    problem: str = ""


class _Graph(msgspec.Struct):
    precision: str
    good_scores: Annotated[list[Value], msgspec.Meta(max_length=_MOST)] = []


class _Record(msgspec.Struct):
    """The part of ``calibration.json`` that holds values of good images."""

    graphs: list[_Graph]
    good_frames: dict[str, Annotated[list[Quantity], msgspec.Meta(max_length=_MOST)]] = {}


def reference_of(
    bundle: Bundle, precision: str, *, accepted_below: float | None = None, whole_frames: bool = True
) -> Reference:
    """Read the values of a bundle's good images.

    Args:
        bundle: The bundle.
        precision: The precision of the graph whose scores are watched.
        accepted_below: The threshold of the score, where it decides. Larger scores are left out, because a station
            watches the scores of accepted frames only.
        whole_frames: False where the station judges a region or tiles, so that its scores are others.
    """
    if _RECORD not in {stored.path for stored in bundle.manifest.files}:
        return Reference(problem="the bundle was not calibrated")
    try:
        record = msgspec.json.decode(bundle.read(_RECORD), type=_Record)
    except (msgspec.MsgspecError, FlowEdgeError) as error:
        return Reference(problem=f"the calibration of the bundle cannot be read ({error})")
    values = _pictures(record.good_frames)
    if whole_frames:
        scores = next((one.good_scores for one in record.graphs if one.precision == precision), [])
        values[SCORE] = [one for one in scores if accepted_below is None or one <= accepted_below]
    enough = {name: one for name, one in values.items() if len(one) >= _FEWEST}
    problem = (
        "" if enough else "the bundle was calibrated on too few images or by an earlier version of FlowEdge"
    )
    return Reference(values=enough, problem=problem)


def _pictures(columns: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Compute the quantities of the pictures from the stored statistics, where all of them are there."""
    if set(FRAME_QUANTITIES) - set(columns) or len({len(one) for one in columns.values()}) != 1:
        return {}
    statistics = np.array([columns[name] for name in FRAME_QUANTITIES]).T
    return dict(zip(PICTURE, picture_values(statistics).T.tolist(), strict=True))
