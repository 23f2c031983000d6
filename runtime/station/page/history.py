"""Draw the scores of the newest records against the limit that decided on each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flowedge.runtime.report.charts import Series, points
from flowedge.runtime.report.markup import EMPTY, Markup
from flowedge.runtime.station.page.state import quantity_of
from flowedge.runtime.station.record import Record


def score_history(records: Sequence[Record]) -> Markup:
    """Draw the scores of records, or their log NFA where it decides.

    Args:
        records: The records in the order of their numbers.
    """
    judged = [one for one in records if quantity_of(one)[1] is not None]
    if not judged:
        return EMPTY
    name = quantity_of(judged[-1])[0]
    series = []
    for signal, words, style in (("ok", "OK", "good"), ("nok", "NOK", "bad")):
        values = [
            (place, quantity_of(one)[1])
            for place, one in enumerate(records)
            if one.signal == signal and quantity_of(one)[0] == name
        ]
        known = [(place, value) for place, value in values if value is not None]
        if known:
            series.append(
                Series(
                    name=words, style=style, x=[place for place, _ in known], y=[value for _, value in known]
                )
            )
    limits = [
        (float(place), quantity_of(one)[2])
        for place, one in enumerate(records)
        if quantity_of(one)[0] == name
    ]
    return points(
        f"{name[:1].upper()}{name[1:]} of the last {len(records)} parts",
        series,
        "part, the newest at the right",
        name,
        limits=_steps([(place, limit) for place, limit in limits if limit is not None]),
    )


def _steps(limits: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a line that jumps between two parts where the limit was changed."""
    corners: list[tuple[float, float]] = []
    for limit, run in itertools.groupby(limits, key=lambda one: one[1]):
        places = [place for place, _ in run]
        corners += [
            (max(places[0] - 0.5, limits[0][0]), limit),
            (min(places[-1] + 0.5, limits[-1][0]), limit),
        ]
    return corners
