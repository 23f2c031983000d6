"""Draw the scores of the newest records against the limit that decided on each."""

from __future__ import annotations

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
    limit = quantity_of(judged[-1])[2]
    return points(
        f"{name.capitalize() if name == 'score' else name} of the last {len(records)} parts",
        series,
        "part, the newest at the right",
        name,
        limit=limit,
    )
