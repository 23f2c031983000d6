"""Write the page that lists every flipped verdict of a second bundle, before anybody promotes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from flowedge.runtime.report.charts import Series, charts, points
from flowedge.runtime.report.markup import Markup
from flowedge.runtime.report.run_report import common_folder
from flowedge.runtime.report.shell import facts, figures, page_of, paragraph, section
from flowedge.runtime.report.tables import Column, image_table, table
from flowedge.runtime.station.watch.comparison import PICTURES, Compared, Summary
from flowedge.runtime.station.watch.ranks import ranks_of

MOST_ROWS: Final = 20_000
MOST_PICTURES: Final = 500

_WORDS: Final = {"ok": "ok", "anomalous": "wrong", "unknown": "absent", "not_inspected": "absent"}
_MOST_POINTS: Final = 1500


def shadow_page(
    summary: Summary,
    compared: Sequence[Compared],
    pictures_of: Callable[[Compared], Sequence[str | None]],
    about: Sequence[tuple[str, str]],
    *,
    note: str,
) -> str:
    """Return the page.

    Args:
        summary: The comparison in numbers.
        compared: The frames.
        pictures_of: Gives the ``data:`` addresses of the pictures of a frame, as many as ``PICTURES``.
        about: Names and values about the two bundles and the frames.
        note: A sentence on the choice of the frames.
    """
    flipped = [one for one in compared if one.is_flipped]
    sections = [
        figures(
            [
                ("frames", summary.frames),
                ("flipped verdicts", summary.flipped),
                ("anomalous, first", _percent(summary.anomalous_first)),
                ("anomalous, second", _percent(summary.anomalous_second)),
                (
                    "rank correlation",
                    "-" if summary.rank_correlation is None else f"{summary.rank_correlation:.3f}",
                ),
            ]
        ),
        paragraph(note),
        section("Verdicts", _verdicts(summary)),
        section(
            "Scores",
            charts(_ranks(compared)),
            paragraph(
                "Scores of two bundles may have different scales, so their ranks are compared. Frames far from the "
                "diagonal are judged differently in kind, also where no verdict flips.",
                soft=True,
            ),
        ),
        section("Flipped verdicts", *_flipped(flipped, pictures_of), identifier="images"),
        section("Where the answers come from", facts(about)),
    ]
    return page_of("Two bundles on the same frames", sections, lead=dict(about).get("second bundle", ""))


def _verdicts(summary: Summary) -> Markup:
    columns = sorted({second for counts in summary.verdicts.values() for second in counts})
    return table(
        "Frames by the verdict of the first bundle (rows) and of the second (columns)",
        ["first", *(f">second: {_plain(name)}" for name in columns)],
        [
            [_plain(first), *(str(counts.get(name, 0)) for name in columns)]
            for first, counts in summary.verdicts.items()
        ],
    )


def _ranks(compared: Sequence[Compared]) -> Markup:
    both = [one for one in compared if one.first.score is not None and one.second.score is not None]
    if len(both) < 2:
        return Markup("")
    first, second = (
        ranks_of(np.array([side.score for side in sides], np.float64))
        for sides in ([one.first for one in both], [one.second for one in both])
    )
    series = []
    for name, style, is_flipped in (("same verdict", "good", False), ("flipped", "bad", True)):
        places = [place for place, one in enumerate(both) if one.is_flipped == is_flipped]
        places = places[:: -(-len(places) // _MOST_POINTS) or 1]
        if places:
            series.append(Series(name=name, style=style, x=first[places].tolist(), y=second[places].tolist()))
    return points("Ranks of the scores", series, "rank by the first bundle", "rank by the second bundle")


def _flipped(
    flipped: Sequence[Compared], pictures_of: Callable[[Compared], Sequence[str | None]]
) -> list[Markup]:
    if not flipped:
        return [paragraph("No verdict differs.")]
    shown = flipped[:MOST_ROWS]
    columns = [
        Column(name="image", kind="name"),
        Column(name="first", kind="choice", styles=_WORDS),
        Column(name="second", kind="choice", styles=_WORDS),
        Column(name="score, first", kind="number", digits=4),
        Column(name="score, second", kind="number", digits=4),
        Column(name="log NFA, first", kind="number", digits=1),
        Column(name="log NFA, second", kind="number", digits=1),
        Column(name="part", kind="text"),
        Column(name="time", kind="text"),
        Column(name="number", kind="number"),
        Column(name="reason", kind="text"),
    ]
    folder = common_folder([one.source_id for one in shown])
    rows = [
        (
            one.source_id.removeprefix(folder),
            one.first.verdict,
            one.second.verdict,
            one.first.score,
            one.second.score,
            one.first.log_nfa,
            one.second.log_nfa,
            one.part,
            one.time or None,
            one.number,
            one.second.problem or one.first.problem or None,
        )
        for one in shown
    ]
    with_pictures = [place for place, one in enumerate(shown) if one.has_pictures][:MOST_PICTURES]
    words = [f"All names begin with {folder}."] if folder else []
    words += ["A click on a picture enlarges it, and the arrow keys go to the next."]
    if len(shown) < len(flipped):
        words.append(f"The table has the first {MOST_ROWS} of {len(flipped)} frames.")
    if len(with_pictures) < len(shown):
        words.append(f"Pictures are here of {len(with_pictures)} of these frames.")
    pictures = {place: pictures_of(shown[place]) for place in with_pictures}
    return [
        paragraph(" ".join(words), soft=True),
        image_table("Frames whose verdict differs", columns, rows, pictures, PICTURES),
    ]


def _plain(verdict: str) -> str:
    return verdict.replace("_", " ")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
