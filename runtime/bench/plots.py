"""Draw the three plots of a report as inline SVG. Every text in them is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from flowedge.runtime.bench.timing_report import Report, Row

_WIDTH: Final = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 12, 40
_COLOURS: Final = ("#4a7fb5", "#d9822b", "#2c7a4b", "#7a5ba6", "#8a6d3b", "#3b8f8f", "#b0568d", "#5c6675")
_WRONG: Final = "#c22f2f"
_ROW: Final = 26
_LABEL: Final = 44  # characters beside the boxes
_Scale: TypeAlias = Callable[[float], float]


def latency_distributions(report: Report) -> str:
    """Draw a line from the 1st to the 99th percentile, a box from the 10th to the 90th, and the median of each row."""
    rows = [(row, timing) for row in report.rows if (timing := row.first_timing) is not None]
    if not rows:
        return ""
    left, height = 300, _TOP + _ROW * len(rows) + _BOTTOM
    top = max(timing.percentiles_ms[99] for _, timing in rows)
    ticks = _ticks(top)

    def x(value: float) -> float:
        return left + (_WIDTH - left - _RIGHT) * value / ticks[-1]

    parts = [_vertical_grid(x, ticks, height, "ms of one inference, at the first batch")]
    for number, (row, timing) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        colour = _colour(row, report)
        p = timing.percentiles_ms
        parts += [
            _text(left - 8, y + 4, _short(row.label), "end", _WRONG if row.is_wrong else "#1d2430"),
            f'<line x1="{x(p[1]):.1f}" x2="{x(p[99]):.1f}" y1="{y}" y2="{y}" stroke="{colour}"/>',
            f'<rect x="{x(p[10]):.1f}" y="{y - 6}" width="{max(x(p[90]) - x(p[10]), 1):.1f}" height="12" '
            f'fill="{colour}" fill-opacity="0.35"/>',
            f'<line x1="{x(p[50]):.1f}" x2="{x(p[50]):.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{colour}" '
            'stroke-width="2"/>',
        ]
    return _svg(height, parts, "latency distributions")


def throughput_over_batch(report: Report) -> str:
    """Draw images per second over the batch, with a line for each row."""
    rows = [row for row in report.rows if row.first_timing is not None]
    if not rows:
        return ""
    batches = sorted({timing.batch for row in rows for timing in row.timings if timing.images_per_s})
    rates = [timing.images_per_s for row in rows for timing in row.timings if timing.images_per_s]
    height = 320
    ticks, places = _ticks(max(rates)), {batch: place for place, batch in enumerate(batches)}

    def x(batch: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (places[batch] + 0.5) / len(batches)

    def y(value: float) -> float:
        return height - _BOTTOM - (height - _TOP - _BOTTOM) * value / ticks[-1]

    parts = [_horizontal_grid(y, ticks)]
    parts += [_text(x(batch), height - 22, f"batch {batch}", "middle") for batch in batches]
    parts.append(_text(_LEFT, height - 6, "images per second", "start"))
    for row in rows:
        points = [(x(t.batch), y(t.images_per_s)) for t in row.timings if t.images_per_s]
        colour = _colour(row, report)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"><title>{html.escape(row.label)}</title></circle>'
            for a, b in points
        ]
    return _svg(height, parts, "throughput over batch") + _key(rows, report)


def accuracy_over_latency(report: Report) -> str:
    """Draw the worst error over the latency, with a point for each row that was compared with the expected answers."""
    rows = [row for row in report.rows if row.first_timing is not None and row.parity is not None]
    shown = [(row, row.parity.worst_error) for row in rows if row.parity is not None]
    finite = [max(error, 1e-9) for _, error in shown if error is not None]
    if not rows or not finite:
        return ""
    height = 320
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)) + 1e-9)
    high = max(high, low + 1)
    latencies = [row.first_timing.p50_ms or 0.0 for row in rows if row.first_timing is not None]
    ticks = _ticks(max(latencies))

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / ticks[-1]

    def y(exponent: float) -> float:
        return height - _BOTTOM - (height - _TOP - _BOTTOM) * (exponent - low) / (high - low)

    parts = [_vertical_grid(x, ticks, height, "p50 in ms; upwards: worst error of the levels against fp32")]
    for exponent in range(low, high + 1):
        parts.append(_text(_LEFT - 8, y(exponent) + 4, f"1e{exponent}", "end"))
    for (row, error), latency in zip(shown, latencies, strict=True):
        # An error that is not a number is drawn at the top, beside the worst.
        level = high if error is None else math.log10(max(error, 1e-9))
        parts.append(
            f'<circle cx="{x(latency):.1f}" cy="{y(level):.1f}" r="6" fill="{_colour(row, report)}">'
            f"<title>{html.escape(row.label)}</title></circle>"
        )
    return _svg(height, parts, "accuracy over latency") + _key(rows, report)


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" role="img" aria-label="{html.escape(title)}" '
        f'font-size="12">{"".join(parts)}</svg>'
    )


def _key(rows: Sequence[Row], report: Report) -> str:
    entries = [
        f'<span><i style="background: {_colour(row, report)}"></i>{html.escape(row.label)}</span>'
        for row in rows
    ]
    return f'<p class="key">{"".join(entries)}</p>'


def _colour(row: Row, report: Report) -> str:
    """Return the colour of a row, which is the same in every plot."""
    measured = [one for one in report.rows if one.first_timing is not None]
    number = next(n for n, one in enumerate(measured) if one is row)
    return _WRONG if row.is_wrong else _COLOURS[number % len(_COLOURS)]


def _vertical_grid(x: _Scale, ticks: Sequence[float], height: float, title: str) -> str:
    lines = [
        f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="#dfe3e8"/>'
        + _text(x(tick), height - 22, f"{tick:g}", "middle")
        for tick in ticks
    ]
    return "".join(lines) + _text(x(0), height - 6, title, "start")


def _horizontal_grid(y: _Scale, ticks: Sequence[float]) -> str:
    return "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#dfe3e8"/>'
        + _text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end")
        for tick in ticks
    )


def _ticks(top: float) -> list[float]:
    """Return ticks from 0 to at least ``top``, in steps of 1, 2 or 5 times a power of ten."""
    rough = max(top, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [step * n for n in range(math.ceil(top / step) + 1)] if top > 0 else [0.0, step]


def _short(label: str) -> str:
    """Cut a label from its front to the width of the margin, since engine and precision stand at its end."""
    return label if len(label) <= _LABEL else f"…{label[1 - _LABEL :]}"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#5c6675") -> str:
    shown = text if len(text) <= 44 else f"{text[:43]}…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(shown)}</text>'
