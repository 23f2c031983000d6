"""Write a gate's report as one HTML page. The page holds its pictures, so it opens offline and can be sent by mail."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.calibration_record import BlockChoice
from flowedge.calibration.gate_report import GateQuantity, GateReport
from flowedge.runtime.colours import heatmap
from flowedge.runtime.render import data_address

# The longer side of a picture in the page.
_WIDEST_PX: Final = 320
_BAR_PX, _ROW_PX, _NAME_PX = 420, 20, 280
_COLOURS: Final = {"fp32": "#8a94a3", "fp16": "#4a7fb5", "bf16": "#4a7fb5", "int8": "#2c7a4b"}
_OTHER_COLOUR: Final = "#d9822b"


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
    title: str, report: GateReport, blocks: Sequence[BlockChoice], maps: Sequence[MapTriple]
) -> str:
    """Return the HTML page of a gate's report.

    Args:
        title: The page's heading, such as the bundle's name and the precision.
        report: The gate's report.
        blocks: The blocks in the order to show them. Without blocks the page has no section on them.
        maps: Frames with their two maps. Without maps the page has no section on them.

    Returns:
        A complete HTML document, with its style and its pictures inside.
    """
    verdict = '<b class="ok">passed</b>' if report.passed else '<b class="wrong">failed</b>'
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>The gate {verdict}: {report.good_images} good images, {report.defect_images} synthetic defects and "
        f"{report.labelled_images} labelled images, each run through the fp32 graph and through this graph.</p>",
        _table(
            ("quantity", "value", "limit", "", "summary"),
            (_quantity_cells(one) for one in report.quantities),
        ),
    ]
    if blocks:
        measured = [one for one in blocks if one.sensitivity is not None]
        unmeasured = '<p class="soft">Not measured, because the gate passed with every block converted.</p>'
        sections += [
            "<h2>Sensitivity of the blocks</h2>",
            _bars(measured) if measured else unmeasured,
            _table(
                ("block", "share of the work", "sensitivity", "precision", "why"),
                (_block_cells(one) for one in blocks),
            ),
        ]
    if maps:
        sections.append(
            '<h2>Maps side by side</h2><p class="soft">Frame, fp32 map, this graph\'s map, difference. The two maps '
            "of a row share one colour scale, from the fp32 map's smallest value to its largest.</p>"
        )
        sections += [_figure(one) for one in maps]
    return _HEAD.format(title=escape(title)) + "\n".join(sections) + "\n</body>\n</html>\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _quantity_cells(one: GateQuantity) -> Sequence[str]:
    if one.limit is None:
        outcome = '<span class="soft">reported</span>'
    else:
        outcome = '<span class="ok">passed</span>' if one.passed else '<span class="wrong">failed</span>'
    numbers = ("-" if number is None else f"{number:.6g}" for number in (one.value, one.limit))
    return (escape(one.name), *numbers, outcome, escape(one.summary))


def _block_cells(one: BlockChoice) -> Sequence[str]:
    share = f"{one.macs_share:.1%}"
    sensitivity = "-" if one.sensitivity is None else f"{one.sensitivity:.3g}"
    return (escape(one.name), share, sensitivity, escape(one.precision), escape(one.reason))


def _bars(blocks: Sequence[BlockChoice]) -> str:
    """Draw one bar a block, as long as its sensitivity. A sensitivity that is not finite gets the longest bar."""
    sensitivities = [one.sensitivity or 0.0 for one in blocks]
    longest = max(filter(math.isfinite, sensitivities), default=0.0) or 1.0
    width, height = _NAME_PX + _BAR_PX + 80, _ROW_PX * len(blocks)
    drawn = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Sensitivity" font-size="12">'
    ]
    for row, (one, sensitivity) in enumerate(zip(blocks, sensitivities, strict=True)):
        share = sensitivity / longest if math.isfinite(sensitivity) else 1.0
        bar, y = max(0.0, share) * _BAR_PX, row * _ROW_PX
        drawn.append(
            f'<text x="{_NAME_PX - 6}" y="{y + 14}" text-anchor="end">{escape(one.name[-44:])}</text>'
            f'<rect x="{_NAME_PX}" y="{y + 3}" width="{bar:.1f}" height="{_ROW_PX - 6}" '
            f'fill="{_COLOURS.get(one.precision, _OTHER_COLOUR)}"><title>{escape(one.name)}</title></rect>'
            f'<text x="{_NAME_PX + bar + 5:.1f}" y="{y + 14}">{sensitivity:.3g} {escape(one.precision)}</text>'
        )
    return "\n".join([*drawn, "</svg>"])


def _figure(one: MapTriple) -> str:
    low, high = _range(one.fp32)
    apart = np.abs(one.converted - one.fp32)
    worst = _range(apart)[1]
    pictures = {
        "frame": one.frame,
        "fp32 map": heatmap(one.fp32, low, high if high > low else low + 1),
        "this graph's map": heatmap(one.converted, low, high if high > low else low + 1),
        "difference": heatmap(apart, 0.0, worst or 1.0),
    }
    images = "".join(
        f'<img alt="{name}" src="{data_address(_shrunk(picture))}">' for name, picture in pictures.items()
    )
    caption = f"{escape(one.name)}: fp32 map {low:.4g} to {high:.4g}, largest difference {worst:.3g}"
    return f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>"


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the smallest and the largest finite value, or 0 and 0 where no value is finite."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = _WIDEST_PX / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


_HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; color: #1d2430; background: #ffffff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }}
h1 {{ font-size: 28px; margin: 0 0 4px; }}
h2 {{ font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid #dfe3e8; }}
.soft, th, figcaption {{ color: #5c6675; }}
table {{ border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 4px 20px 4px 0; border-bottom: 1px solid #dfe3e8; vertical-align: top; }}
th, figcaption {{ font-size: 13px; }}
figure {{ margin: 0 0 14px; }}
figure div {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: 3px; }}
figure img {{ width: 100%; display: block; border-radius: 2px; }}
.ok {{ color: #2c7a4b; }} .wrong {{ color: #c22f2f; font-weight: 600; }}
svg {{ max-width: 100%; height: auto; fill: #1d2430; }}
</style>
</head>
<body>
"""
