"""Draw charts as plain SVG, which prints sharply, follows the page's colours and needs no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from flowedge.runtime.report.markup import Markup, element, joined

WIDTH: Final = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 16, 40
_HEIGHT: Final = 270
_BINS: Final = 40
_POINTS: Final = 400
_LABEL: Final = 58  # characters above a bar

_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Numbers that one colour stands for.

    Attributes:
        name: The name in the legend.
        style: The CSS class of the colour: ``good``, ``bad``, ``left``, or ``c0`` to ``c7``.
        x: The numbers, or the horizontal positions of a line's or a cloud's points.
        y: The vertical positions, as many as ``x``. A histogram has none.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float] = ()


def histogram(title: str, series: Sequence[Series], unit: str, *, limit: float | None = None) -> Markup:
    """Draw how often each value occurs, with the series stacked, and a threshold as a dashed line.

    A few values far above the others would make all others one bar. The last bar then holds everything from its lower
    edge upwards, and its label says so.

    Args:
        title: The chart's title.
        series: One series or more with finite numbers.
        unit: The name of the values.
        limit: The threshold.
    """
    values = sorted(value for one in series for value in one.x)
    if not values:
        return Markup("")
    low, high, is_cut = _range(values, limit)
    width = (high - low) / _BINS
    counts = [[0] * _BINS for _ in series]
    for row, one in zip(counts, series, strict=True):
        for value in one.x:
            row[min(_BINS - 1, max(0, int((value - low) / width)))] += 1
    tallest = max(map(sum, zip(*counts, strict=True)))
    ticks = ticks_to(tallest, whole=True)
    x, y = _linear(low, high, _LEFT, WIDTH - _RIGHT), _linear(0, ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [_rows(y, ticks), _columns(x, _between(low, high), _HEIGHT, lines=False)]
    for place in range(_BINS):
        below = 0
        for row, one in zip(counts, series, strict=True):
            if row[place]:
                top, bottom = y(below + row[place]), y(below)
                edge = low + place * width
                span = (
                    f"from {edge:.4g}"
                    if is_cut and place == _BINS - 1
                    else f"{edge:.4g} to {edge + width:.4g}"
                )
                parts.append(
                    element(
                        "rect",
                        element("title", f"{one.name}, {span}: {row[place]}"),
                        class_=one.style,
                        x=_n(x(edge) + 0.5),
                        y=_n(top),
                        width=_n(x(edge + width) - x(edge) - 1),
                        height=_n(bottom - top),
                    )
                )
                below += row[place]
    if is_cut:
        parts.append(_text(WIDTH - _RIGHT, _HEIGHT - 22, "and above", "end"))
    parts += _limit(x, limit)
    return _chart(title, parts, _HEIGHT, f"number of images by {unit}", series)


def lines(
    title: str,
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    *,
    marks: Sequence[tuple[float, float, str]] = (),
    x_top: float = 1.0,
    y_top: float = 1.0,
    is_filled: bool = False,
    has_points: bool = False,
    has_legend: bool = True,
) -> Markup:
    """Draw curves over axes that begin at 0.

    Args:
        title: The chart's title.
        series: The curves, by ``x``.
        x_name: The name of the horizontal axis.
        y_name: The name of the vertical axis.
        marks: Points to point out, each with its name.
        x_top: The largest value of the horizontal axis.
        y_top: The largest value of the vertical axis.
        is_filled: True fills the area below the curves.
        has_points: True draws a circle at each point of a curve.
        has_legend: False leaves out the legend, for a page that has one for all charts.
    """
    x_ticks, y_ticks = ticks_to(x_top), ticks_to(y_top)
    x = _linear(0, max(x_top, x_ticks[-2]), _LEFT, WIDTH - _RIGHT)
    y = _linear(0, y_ticks[-1] if y_top > 1 else y_top, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        _rows(y, [one for one in y_ticks if one <= y_ticks[-1] and (y_top > 1 or one <= y_top + 1e-9)]),
        _columns(x, [one for one in x_ticks if one <= x_top + 1e-9], _HEIGHT),
    ]
    for one in series:
        points = " ".join(f"{_n(x(a))},{_n(y(b))}" for a, b in _thinned(one.x, one.y))
        if is_filled and one.x:
            closed = f"{_n(x(one.x[0]))},{_n(y(0))} {points} {_n(x(one.x[-1]))},{_n(y(0))}"
            parts.append(element("polygon", points=closed, class_=f"area {one.style}"))
        parts.append(element("polyline", points=points, class_=f"line {one.style}"))
        if has_points:
            tip = element("title", one.name)
            parts += [
                element("circle", tip, cx=_n(x(a)), cy=_n(y(b)), r=4, class_=one.style)
                for a, b in zip(one.x, one.y, strict=True)
            ]
    for a, b, name in marks:
        side = "end" if x(a) > WIDTH * 0.6 else "start"
        parts.append(element("circle", element("title", name), cx=_n(x(a)), cy=_n(y(b)), r=5, class_="bad"))
        parts.append(_text(x(a) + (-9 if side == "end" else 9), y(b) + 16, name, side, "strong"))
    return _chart(title, parts, _HEIGHT, f"{y_name} over {x_name}", series if has_legend else (), x_name)


def points(
    title: str,
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    *,
    limit: float | None = None,
    limits: Sequence[tuple[float, float]] = (),
    is_log: bool = False,
    names: Sequence[Sequence[str]] = (),
    has_legend: bool = True,
) -> Markup:
    """Draw a cloud of points.

    Args:
        title: The chart's title.
        series: The points.
        x_name: The name of the horizontal axis.
        y_name: The name of the vertical axis.
        limit: A threshold of the vertical axis, which is drawn as a dashed line.
        limits: The corners of a threshold that changes, in place of ``limit``. Such a line is not for ``is_log``.
        is_log: True draws the powers of ten of the vertical axis at equal distances. Its values are then positive.
        names: A name for each point, which shows under the pointer.
        has_legend: False leaves out the legend, for a page that has one for all charts.
    """
    every = [value for one in series for value in one.y] + [value for _, value in limits]
    if not every:
        return Markup("")
    x_ticks = ticks_to(max(value for one in series for value in one.x))
    x = _linear(0, x_ticks[-1], _LEFT, WIDTH - _RIGHT)
    if is_log:
        first = math.floor(math.log10(min(every)))
        last = max(math.ceil(math.log10(max(every)) + 1e-9), first + 1)
        y = _linear(first, last, _HEIGHT - _BOTTOM, _TOP)
        step = max(1, (last - first) // 5)
        grid = joined(*(_row(y(power), f"1e{power}") for power in range(first, last + 1, step)))
    else:
        low, high, _ = _range(sorted(every), limit, is_whole=True)
        y = _linear(low, high, _HEIGHT - _BOTTOM, _TOP)
        grid = _rows(y, _between(low, high))
    parts = [grid, _columns(x, x_ticks, _HEIGHT)]
    for row, one in enumerate(series):
        for place, (a, b) in enumerate(zip(one.x, one.y, strict=True)):
            name = names[row][place] if names else None
            parts.append(
                element(
                    "circle",
                    None if name is None else element("title", name),
                    cx=_n(x(a)),
                    cy=_n(y(math.log10(b) if is_log else b)),
                    r=5 if len(every) < 60 else 2.2,
                    class_=one.style,
                )
            )
    if limits:
        corners = " ".join(f"{_n(x(a))},{_n(y(b))}" for a, b in limits)
        parts.append(element("polyline", points=corners, class_="limit"))
    if limit is not None:
        parts.append(
            element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_n(y(limit)), y2=_n(y(limit)), class_="limit")
        )
    return _chart(title, parts, _HEIGHT, f"{y_name} over {x_name}", series if has_legend else (), x_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar, or one distribution where ``spread`` is given.

    Attributes:
        name: The name above the bar.
        value: The length of the bar, or the median.
        shown: The text at the bar's end.
        style: The CSS class of the colour.
        spread: The 1st, 10th, 90th and 99th percentile.
        is_wrong: True writes the name in the colour of errors.
    """

    name: str
    value: float
    shown: str
    style: str
    spread: tuple[float, float, float, float] | None = None
    is_wrong: bool = False


def bars(title: str, entries: Sequence[Bar], x_name: str, words: str = "") -> Markup:
    """Draw horizontal bars below their names. A value that is not finite gets the longest bar.

    A bar with a ``spread`` is a line from the 1st to the 99th percentile, a box from the 10th to the 90th, and the
    median as a stroke.

    Args:
        title: The chart's title.
        entries: The bars, from the top.
        x_name: The name of the horizontal axis.
        words: A description beside the title. By default the name of the axis stands there.
    """
    if not entries:
        return Markup("")
    tops = [one.spread[3] if one.spread else one.value for one in entries]
    longest = max(filter(math.isfinite, tops), default=0.0) or 1.0
    ticks = ticks_to(longest)
    x = _linear(0, ticks[-1], 4, WIDTH - 90)
    row_height, height = 36, 8 + 36 * len(entries) + _BOTTOM
    parts = [_columns(x, ticks, height, top=4)]
    for number, one in enumerate(entries):
        y = 4 + row_height * number
        name = one.name if len(one.name) <= _LABEL else f"…{one.name[1 - _LABEL :]}"
        parts.append(_text(4, y + 13, name, "start", "wrong" if one.is_wrong else "strong"))
        end = min(x(one.value), x(longest)) if math.isfinite(one.value) else x(longest)
        if one.spread is None:
            width = max(0.0, end - x(0))
            tip = element("title", f"{one.name}: {one.shown}")
            parts.append(
                element("rect", tip, x=_n(x(0)), y=y + 18, width=_n(width), height=12, class_=one.style)
            )
            parts.append(_text(x(0) + width + 5, y + 28, one.shown, "start"))
        else:
            first, tenth, ninetieth, last = map(x, one.spread)
            middle = y + 24
            parts += [
                element("line", x1=_n(first), x2=_n(last), y1=middle, y2=middle, class_=one.style),
                element(
                    "rect",
                    x=_n(tenth),
                    y=y + 18,
                    width=_n(max(ninetieth - tenth, 1)),
                    height=12,
                    class_=f"box {one.style}",
                ),
                element(
                    "line", x1=_n(end), x2=_n(end), y1=y + 16, y2=y + 32, stroke_width=2.5, class_=one.style
                ),
                _text(last + 6, y + 28, one.shown, "start"),
            ]
    return _chart(title, parts, height, words or x_name, (), x_name)


def charts(*drawn: Markup) -> Markup:
    """Return charts side by side where the window is wide. Empty charts are left out."""
    return element("div", *(one for one in drawn if one), class_="charts")


def key(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return a legend of CSS classes and names."""
    swatch = (
        '<svg viewBox="0 0 12 12" aria-hidden="true"><rect class="{}" width="12" height="12" rx="2"/></svg>'
    )
    return element(
        "div", *(element("span", Markup(swatch.format(style)), name, class_="key") for style, name in entries)
    )


def ticks_to(top: float, *, whole: bool = False) -> list[float]:
    """Return ticks from 0 to at least ``top``, in steps of 1, 2 or 5 times a power of ten.

    Args:
        top: The largest value to show, at least 0.
        whole: True gives whole numbers only.
    """
    rough = max(top, 1.0 if whole else 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    return [step * number for number in range(max(1, math.ceil(top / step - 1e-9)) + 1)]


def _between(low: float, high: float) -> list[float]:
    """Return round numbers inside of a range."""
    step = ticks_to(high - low)[1]
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(
    values: Sequence[float], limit: float | None, *, is_whole: bool = False
) -> tuple[float, float, bool]:
    """Return the ends of an axis for sorted values, and True where the axis ends below the largest value."""
    low = values[0] if limit is None else min(values[0], limit)
    high = values[-1] if limit is None else max(values[-1], limit)
    middle, top = values[len(values) // 2], values[int(0.98 * (len(values) - 1))]
    bound = max(top + 3 * (top - middle), low if limit is None else limit + (limit - low) / 2)
    is_cut = not is_whole and bound > low and high > bound
    high = bound if is_cut else high
    if high > low:
        return low, high, is_cut
    return low, low + (abs(low) or 1.0), False


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Return at most some hundred points of a curve, of which no neighbours are closer than a pixel can show."""
    every = list(zip(x, y, strict=True))
    if len(every) <= _POINTS:
        return every
    reach_x = (max(x) - min(x)) / _POINTS or 1.0
    reach_y = (max(y) - min(y)) / _POINTS or 1.0
    kept = [every[0]]
    for a, b in every[1:-1]:
        if abs(a - kept[-1][0]) >= reach_x or abs(b - kept[-1][1]) >= reach_y:
            kept.append((a, b))
    return [*kept, every[-1]]


def _linear(low: float, high: float, start: float, end: float) -> _Scale:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _rows(y: _Scale, ticks: Sequence[float]) -> Markup:
    return joined(*(_row(y(tick), f"{round(tick, 10):g}") for tick in ticks))


def _row(y: float, name: str) -> Markup:
    line = element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_n(y), y2=_n(y), class_="grid")
    return joined(line, _text(_LEFT - 7, y + 4, name, "end"))


def _columns(
    x: _Scale, ticks: Sequence[float], height: float, *, lines: bool = True, top: float = _TOP
) -> Markup:
    parts: list[Markup] = []
    for tick in ticks:
        if lines:
            parts.append(
                element("line", x1=_n(x(tick)), x2=_n(x(tick)), y1=top, y2=height - _BOTTOM, class_="grid")
            )
        parts.append(_text(x(tick), height - _BOTTOM + 16, f"{round(tick, 10):g}", "middle"))
    return joined(*parts)


def _limit(x: _Scale, limit: float | None) -> list[Markup]:
    if limit is None:
        return []
    side = "end" if x(limit) > WIDTH / 2 else "start"
    return [
        element("line", x1=_n(x(limit)), x2=_n(x(limit)), y1=_TOP - 6, y2=_HEIGHT - _BOTTOM, class_="limit"),
        _text(x(limit) + (-5 if side == "end" else 5), _TOP + 2, f"threshold {limit:.4g}", side, "limit"),
    ]


def _chart(
    title: str, parts: Sequence[Markup], height: float, words: str, series: Sequence[Series], x_name: str = ""
) -> Markup:
    name = _text((_LEFT + WIDTH - _RIGHT) / 2, height - 4, x_name, "middle") if x_name else None
    drawn = element(
        "svg", *parts, name, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=f"{title}: {words}"
    )
    legend = key([(one.style, one.name) for one in series]) if len(series) > 1 else None
    return element(
        "figure", element("figcaption", element("b", title), f" ({words})", legend), drawn, class_="chart"
    )


def _text(x: float, y: float, text: str, anchor: str, style: str | None = None) -> Markup:
    return element("text", text, x=_n(x), y=_n(y), text_anchor=anchor, class_=style)


def _n(value: float) -> str:
    return f"{value:.1f}"
