"""Draw a gate's report as one HTML page that opens offline and can be sent by mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.calibration_record import BlockChoice, PruningFacts
from flowedge.calibration.gate_report import GateQuantity, GateReport
from flowedge.runtime.colours import heatmap
from flowedge.runtime.render import data_address
from flowedge.runtime.report.charts import Bar, bars, charts, key
from flowedge.runtime.report.markup import Markup, element
from flowedge.runtime.report.pictures import gallery, picture_button, shrunk
from flowedge.runtime.report.shell import page_of, paragraph, section
from flowedge.runtime.report.tables import table

_STYLES: Final = {"fp32": "left", "fp16": "c0", "bf16": "c0", "int8": "c2"}
_OTHER_STYLE: Final = "c1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapTriple:
    """One frame and the two maps laid over it.

    Attributes:
        name: The frame's name in the page.
        frame: ``(H, W, 3)`` uint8 RGB.
        fp32: ``(h, w)`` float32, the fp32 graph's map. Pixels that were not inspected are NaN.
        converted: ``(h, w)`` float32, the map of the graph of lower precision. Pixels that were not inspected are NaN.
    """

    name: str
    frame: NDArray[np.uint8]
    fp32: NDArray[np.float32]
    converted: NDArray[np.float32]


def page_from_gate(
    title: str,
    report: GateReport,
    blocks: Sequence[BlockChoice],
    maps: Sequence[MapTriple],
    *,
    notes: Sequence[str] = (),
    pruning: PruningFacts | None = None,
) -> str:
    """Return the HTML page of a gate's report.

    Args:
        title: The page's heading, such as the bundle's name and the precision.
        report: The gate's report.
        blocks: The blocks in the order to show them. Without blocks the page has no section on them.
        maps: Frames with their two maps. Without maps the page has no section on them.
        notes: Sentences about the precision, such as its speed, which stand above the quantities.
        pruning: The hidden units that were left out of the graph. Without them the page has no section on them.

    Returns:
        A complete HTML document, with its style and its pictures inside.
    """
    verdict = element("b", "passed" if report.passed else "failed", class_="ok" if report.passed else "wrong")
    sections = [
        paragraph(
            "The gate ",
            verdict,
            f": {report.good_images} good images, {report.defect_images} synthetic defects and "
            f"{report.labelled_images} labelled images, each run through the fp32 graph and through this graph.",
        ),
        *(paragraph(sentence) for sentence in notes),
        table(
            "Quantities that the gate compares",
            ("quantity", ">value", ">limit", "outcome", "summary"),
            [_quantity_cells(one) for one in report.quantities],
        ),
    ]
    if pruning is not None:
        sections.append(section("Hidden units", *_pruning(pruning)))
    if blocks:
        sections.append(section("Sensitivity of the blocks", *_blocks(blocks)))
    if maps:
        words = (
            "Frame, fp32 map, this graph's map, difference. The two maps of a figure share one colour scale, from the "
            "fp32 map's smallest value to its largest. A click enlarges them."
        )
        sections.append(
            section("Maps side by side", paragraph(words, soft=True), gallery([_figure(one) for one in maps]))
        )
    return page_of(title, sections)


def _quantity_cells(one: GateQuantity) -> Sequence[object]:
    if one.limit is None:
        outcome = element("span", "reported", class_="soft")
    else:
        outcome = element(
            "span", "passed" if one.passed else "failed", class_="ok" if one.passed else "wrong"
        )
    numbers = ("-" if number is None else f"{number:.6g}" for number in (one.value, one.limit))
    return (one.name, *numbers, outcome, one.summary)


def _pruning(facts: PruningFacts) -> list[Markup]:
    """Return what was saved, and a table of the hidden layers."""
    rows = [(one.name, one.units, one.kept, f"{one.kept / one.units:.1%}") for one in facts.layers]
    words = (
        f"The pruned float32 graph saves {facts.macs_saved:.1%} of the multiply-accumulates of the fp32 graph, and "
        f"took {facts.time_ratio:.2f} of its time on the machine of the calibration."
    )
    heads = ("layer", ">units in fp32", ">kept", ">share")
    return [paragraph(words), table("Hidden layers of the subnets", heads, rows, sortable=True)]


def _blocks(blocks: Sequence[BlockChoice]) -> list[Markup]:
    """Return a bar for each block that was measured, and a table of all blocks."""
    measured = [one for one in blocks if one.sensitivity is not None]
    entries = [
        Bar(
            name=one.name,
            value=one.sensitivity or 0.0,
            shown=f"{one.sensitivity or 0.0:.3g} {one.precision}",
            style=_STYLES.get(one.precision, _OTHER_STYLE),
        )
        for one in measured
    ]
    drawn = [
        charts(bars("Sensitivity", entries, "change of the map when this block alone is converted")),
        key(
            [(_STYLES.get(name, _OTHER_STYLE), name) for name in sorted({one.precision for one in measured})]
        ),
    ]
    if not measured:
        drawn = [paragraph("Not measured, because the gate passed with every block converted.", soft=True)]
    rows = [
        (
            one.name,
            f"{one.macs_share:.1%}",
            "-" if one.sensitivity is None else f"{one.sensitivity:.3g}",
            one.precision,
            one.reason,
        )
        for one in blocks
    ]
    heads = ("block", ">share of the work", ">sensitivity", "precision", "why")
    return [*drawn, table("Blocks of the graph", heads, rows, sortable=True)]


def _figure(one: MapTriple) -> Markup:
    low, high = _range(one.fp32)
    apart = np.abs(one.converted - one.fp32)
    worst = _range(apart)[1]
    top = high if high > low else low + 1
    pictures = {
        "frame": one.frame,
        "fp32 map": heatmap(one.fp32, low, top),
        "this graph's map": heatmap(one.converted, low, top),
        "difference": heatmap(apart, 0.0, worst or 1.0),
    }
    return picture_button(
        one.name,
        [(name, data_address(shrunk(picture))) for name, picture in pictures.items()],
        f"{one.name}: fp32 map {low:.4g} to {high:.4g}, largest difference {worst:.3g}",
    )


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the smallest and the largest finite value, or 0 and 0 where no value is finite."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
