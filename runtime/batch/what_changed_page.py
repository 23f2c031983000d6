"""Write the page of a comparison: counts, charts of the scores, and pictures of the worst flips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flowedge.clock import utc_now
from flowedge.errors import FlowEdgeError
from flowedge.runtime.batch.pairing import Pairing
from flowedge.runtime.batch.reading import read_stored_image
from flowedge.runtime.batch.what_changed import TO_ANOMALOUS, TO_OK, Comparison, Flip, SideFacts, flips_of
from flowedge.runtime.frames.images import image_from_bytes
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.report.charts import Series, charts, histogram
from flowedge.runtime.report.markup import Markup
from flowedge.runtime.report.pages import write_page
from flowedge.runtime.report.pictures import jpeg_address, shrunk
from flowedge.runtime.report.run_report import common_folder
from flowedge.runtime.report.shell import facts, figures, notice, page_of, paragraph, section
from flowedge.runtime.report.tables import Column, image_table, table

MOST_ROWS: Final = 2000
MOST_PICTURES: Final = 60
_IN_CHARTS: Final = 20_000
_STYLES: Final = {"ok": "ok", "anomalous": "wrong"}


def write_comparison(
    file: Path,
    pairing: Pairing,
    comparison: Comparison,
    *,
    archive: Path | None = None,
    pixel_range: PixelRange | None = None,
) -> None:
    """Write a page about a comparison.

    Args:
        file: The HTML file. A file that is there is replaced.
        pairing: The paired rows.
        comparison: The comparison.
        archive: The folder that the pictures of a station's journal are in.
        pixel_range: The levels of pictures of more than 8 bits that become 0 and 255.

    Raises:
        FlowEdgeError: The file cannot be written.
    """
    one = comparison
    sections: list[Markup] = [
        figures(
            [
                ("images in both", one.images),
                ("ok before, anomalous now", one.to_anomalous),
                ("anomalous before, ok now", one.to_ok),
                *(
                    [("flips that the labels call wrong", one.wrong_flips)]
                    if one.wrong_flips is not None
                    else []
                ),
                ("rank correlation", _number(one.spearman)),
            ]
        )
    ]
    if one.only_old or one.only_new:
        sections.append(
            notice(
                f"{one.only_old} images are only in the old result, and {one.only_new} only in the new one. They count "
                "nowhere below."
            )
        )
    sections.append(_verdicts(one))
    sections.append(_scores(pairing, one))
    sections.append(_flips(pairing, one, archive, pixel_range))
    sections.append(
        section("Where the results come from", facts([*_side("old", one.old), *_side("new", one.new)]))
    )
    lead = f"{one.old.result} and {one.new.result}, paired by {one.by}, {utc_now():%Y-%m-%d %H:%M} UTC"
    write_page(file, page_of("What changed", sections, lead=lead))


def _verdicts(one: Comparison) -> Markup:
    olds, news = (sorted({pair.split(", ")[side] for pair in one.verdicts}) for side in (0, 1))
    rows = [[old.replace("_", " "), *(one.verdicts.get(f"{old}, {new}", 0) for new in news)] for old in olds]
    columns = ["old verdict", *(f">{new.replace('_', ' ')} now" for new in news)]
    content: list[Markup] = [table("Images by old and new verdict", columns, rows)]
    sides = (one.old, one.new)
    if any(side.false_alarm_rate is not None or side.auroc is not None for side in sides):
        content.append(
            table(
                f"{one.labelled} labelled images",
                ["", ">AUROC", ">false alarms", ">detected"],
                [
                    [name, _number(side.auroc), _number(side.false_alarm_rate), _number(side.detection_rate)]
                    for name, side in zip(("old", "new"), sides, strict=True)
                ],
            )
        )
    return section("Verdicts", *content)


def _scores(pairing: Pairing, one: Comparison) -> Markup:
    """Draw the scores of a sample that does not change from run to run."""
    sample = pairing.rows(
        f"SELECT old_score, new_score, is_bad FROM scored ORDER BY hash(old_score, new_score) LIMIT {_IN_CHARTS}"
    )
    if not sample:
        return section("Scores", paragraph("No image has both scores."))

    def drawn(title: str, values: Sequence[float], unit: str) -> Markup:
        kinds = (("no label", "c0", None), ("good", "good", False), ("bad", "bad", True))
        series = [
            Series(name=name, style=style, x=chosen)
            for name, style, kind in kinds
            if (chosen := [value for value, row in zip(values, sample, strict=True) if row[2] is kind])
        ]
        return histogram(title, series, unit)

    quantiles = table(
        "Quantiles of the scores",
        ["share of the images", ">old", ">new", ">new minus old"],
        [
            [f"{share:.0%}", *(f"{value:.4g}" for value in values)]
            for share, *values in zip(
                one.quantiles,
                one.old.score_quantiles,
                one.new.score_quantiles,
                one.difference_quantiles,
                strict=True,
            )
        ],
    )
    words = (
        f"The correlation of the scores is {_number(one.pearson)}, and that of their ranks {_number(one.spearman)}. "
        "Scores of two detectors need not share a scale, and then only the ranks can be compared."
    )
    if one.scored > len(sample):
        words += f" The charts show {len(sample)} of {one.scored} images."
    return section(
        "Scores",
        paragraph(words, soft=True),
        charts(
            drawn("Old scores", [row[0] for row in sample], "score"),
            drawn("New scores", [row[1] for row in sample], "score"),
            drawn("Differences", [row[1] - row[0] for row in sample], "new minus old"),
        ),
        quantiles,
    )


def _flips(pairing: Pairing, one: Comparison, archive: Path | None, pixel_range: PixelRange | None) -> Markup:
    """Show the flips of both directions in turns, so that the worst of both are at the top."""
    of_each = [list(flips_of(pairing, direction, MOST_ROWS // 2)) for direction in (TO_OK, TO_ANOMALOUS)]
    longest = max(map(len, of_each))
    shown = [flips[place] for place in range(longest) for flips in of_each if place < len(flips)]
    if not shown:
        return section("Flips", paragraph("No verdict changed between ok and anomalous."))
    pictures: dict[int, Sequence[str | None]] = {}
    for place, flip in enumerate(shown[:MOST_PICTURES]):
        if (address := _picture(flip, archive, pixel_range)) is not None:
            pictures[place] = [address]
    folder = common_folder([flip.image for flip in shown])
    words = [f"All names begin with {folder}."] if folder else []
    words.append(
        "Flips that the labels call wrong come first, and then the images that are the farthest beyond the limit."
    )
    if one.flips > len(shown):
        words.append(f"The table has {len(shown)} of {one.flips} flips.")
    missing = min(len(shown), MOST_PICTURES) - len(pictures)
    if missing:
        words.append(f"Pictures that could not be read: {missing}. Those of a journal need --archive FOLDER.")
    columns = [
        Column(name="image", kind="name"),
        Column(name="old verdict", kind="choice", styles=_STYLES),
        Column(name="new verdict", kind="choice", styles=_STYLES),
        Column(name="old score", kind="number", digits=4),
        Column(name="new score", kind="number", digits=4),
        Column(name="beyond the limit", kind="number", digits=4),
        Column(name="label", kind="choice"),
    ]
    cells: list[list[Any]] = [
        [
            flip.image.removeprefix(folder),
            flip.old_verdict,
            flip.new_verdict,
            flip.old_score,
            flip.new_score,
            flip.margin,
            flip.label,
        ]
        for flip in shown
    ]
    return section(
        "Flips",
        paragraph(" ".join(words), soft=True),
        image_table("Images whose verdict changed", columns, cells, pictures, ["image"] if pictures else []),
        identifier="flips",
    )


def _picture(flip: Flip, archive: Path | None, pixel_range: PixelRange | None) -> str | None:
    """Return the picture of an image as a ``data:`` address, or None where it cannot be read."""
    names = [flip.image]
    if archive is not None and flip.picture:
        names.insert(0, str(archive / flip.picture))
    for name in names:
        try:
            return jpeg_address(shrunk(image_from_bytes(name, read_stored_image(name), pixel_range)))
        except FlowEdgeError:
            continue
    return None


def _side(word: str, side: SideFacts) -> list[tuple[str, str]]:
    return [
        (f"{word} result", f"{side.result}, a {side.kind} with {side.rows} rows"),
        (f"{word} bundle and precision", ", ".join(side.bundles)),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
