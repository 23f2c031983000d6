"""Write the page on which a person changes a threshold or the region of interest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from flowedge.runtime.report.markup import EMPTY, Markup, element, joined, text_of
from flowedge.runtime.report.shell import notice, paragraph, section
from flowedge.runtime.report.tables import table
from flowedge.runtime.station.overrides import Change, ThresholdChange
from flowedge.runtime.station.page.controls import Area, Limit
from flowedge.runtime.station.page.layout import moment_of, number
from flowedge.runtime.station.page.overview import overlay
from flowedge.runtime.station.page.polygons import text_of_area

_SHOWN: Final = 50


def changes_page(
    limits: Sequence[Limit],
    area: Area,
    changes: Sequence[Change],
    *,
    is_read_only: bool,
    frame: tuple[int, int],
    number_shown: int,
    typed: Mapping[str, str],
    problem: str = "",
    done: str = "",
) -> Markup:
    """Return the page of changes.

    Args:
        limits: The limits of all products.
        area: The region of interest.
        changes: All changes that people have made, the oldest first.
        is_read_only: True where no token was set, so nobody can change anything.
        frame: The height and the width of the newest frame, 0 where there is none.
        number_shown: The number of the record of that frame.
        typed: The texts of a form that was refused, so that nobody must type them again.
        problem: The reason of the refusal.
        done: The words about a change that was made.
    """
    parts: list[Markup] = []
    if problem:
        parts.append(element("p", problem, class_="notice failed", role="alert"))
    if done:
        parts.append(element("p", done, class_="notice done", role="status"))
    if is_read_only:
        parts.append(
            notice(
                "This page only shows. To allow changes, set token_env or token_file in the table [page] of the "
                "station's file, and start the station again."
            )
        )
    parts.append(
        section("Thresholds", *(_limit(one, typed, is_read_only) for one in limits), identifier="thresholds")
    )
    parts.append(_area(area, frame, number_shown, typed, is_read_only))
    parts.append(_history(changes))
    return joined(*parts)


def _limit(limit: Limit, typed: Mapping[str, str], is_read_only: bool) -> Markup:
    name = "Limit of log NFA" if limit.is_log_nfa else "Threshold of the score"
    if limit.value is None:
        words = "No limit decides, so every verdict is unknown. Calibrate the bundle."
    else:
        below = "below" if limit.is_log_nfa else "above"
        words = f"{name} now: {number(limit.value, 6)}. A part {below} it is anomalous."
    own = (
        "" if limit.value == limit.bundle_value else f" The bundle's own is {number(limit.bundle_value, 6)}."
    )
    heading = element("h3", f"Product {limit.product}") if limit.product else EMPTY
    described = joined(
        heading,
        paragraph(words + own),
        paragraph(f"Bundle {limit.bundle}, version {limit.version} of the limit.", soft=True),
    )
    if is_read_only:
        return described
    is_typed = typed.get("form") == "threshold" and typed.get("product", "") == limit.product
    kept = typed if is_typed else {}
    form = element(
        "form",
        element("input", type="hidden", name="product", value=limit.product),
        element("input", type="hidden", name="log_nfa", value="1" if limit.is_log_nfa else ""),
        _field(
            f"New {name[:1].lower()}{name[1:]}",
            name="value",
            value=kept.get("value", ""),
            inputmode="decimal",
            autocomplete="off",
            placeholder="empty: the bundle's own",
            maxlength=40,
        ),
        *_signature(kept),
        element("button", "Change the threshold", type="submit"),
        method="post",
        action="/changes/threshold",
        class_="change",
    )
    return joined(described, form)


def _signature(kept: Mapping[str, str]) -> tuple[Markup, ...]:
    """Return the fields that each change has: who, why and the token."""
    return (
        _field(
            "Your name",
            name="who",
            value=kept.get("who", ""),
            required=True,
            maxlength=200,
            autocomplete="name",
        ),
        _field(
            "Reason",
            name="why",
            value=kept.get("why", ""),
            required=True,
            maxlength=500,
            autocomplete="off",
        ),
        _field(
            "Token",
            type="password",
            name="token",
            required=True,
            maxlength=500,
            autocomplete="current-password",
        ),
    )


def _field(words: str, **attributes: object) -> Markup:
    """Return an input with its label."""
    return element("label", words, element("input", **attributes))


def _area(
    area: Area, frame: tuple[int, int], number_shown: int, typed: Mapping[str, str], is_read_only: bool
) -> Markup:
    words = paragraph(
        "Blue polygons are inspected, and grey ones are ignored. Without a blue polygon the whole frame is inspected."
    )
    height, width = frame if all(frame) else area.frame_size or (0, 0)
    if area.fixed_because:
        return section("Region of interest", words, notice(area.fixed_because), identifier="area")
    if not height or not width:
        return section(
            "Region of interest",
            words,
            paragraph("The region can be drawn after the next frame that is inspected.", soft=True),
            identifier="area",
        )
    has_picture = all(frame)
    stage = element(
        "div",
        element(
            "img",
            src=f"/live.jpg?view=camera&number={number_shown}" if has_picture else "/static/none.svg",
            alt="newest frame",
            width=width,
            height=height,
        ),
        overlay(area, (height, width)),
        class_="stage editor",
        id="editor",
        data_width=width,
        data_height=height,
    )
    if is_read_only:
        return section("Region of interest", words, stage, identifier="area")
    kept = typed if typed.get("form") == "area" else {}
    tools = element(
        "div",
        element("button", "Inspect", type="button", data_tool="inspect", aria_pressed="true"),
        element("button", "Ignore", type="button", data_tool="ignore", aria_pressed="false"),
        element("button", "Close polygon", type="button", data_tool="close"),
        element("button", "Undo", type="button", data_tool="undo"),
        element("button", "Clear", type="button", data_tool="clear"),
        element(
            "span",
            "Tap the corners one after the other. Tap the first corner, or press Close polygon, to end. Drag a "
            "corner to move it.",
            class_="soft",
        ),
        class_="tools",
        id="draw-tools",
    )
    form = element(
        "form",
        element("input", type="hidden", name="frame", value=f"{height}x{width}"),
        element(
            "label",
            "Corners: inspect or ignore, then column,row of each corner",
            element(
                "textarea",
                _lines(kept.get("points", text_of_area(area))),
                name="points",
                rows=5,
                spellcheck="false",
                maxlength=100_000,
                id="points",
            ),
            class_="wide",
        ),
        *_signature(kept),
        element("button", "Change the region", type="submit"),
        method="post",
        action="/changes/area",
        class_="change",
    )
    if not has_picture:
        missing = (
            "The newest frame was not inspected, so there is no picture of it. If frames have another size now, clear "
            "the region, change it, and draw it again on the next frame."
        )
        return section("Region of interest", words, notice(missing), tools, stage, form, identifier="area")
    return section("Region of interest", words, tools, stage, form, identifier="area")


def _lines(text: str) -> Markup:
    """Return a text of several lines, whose ends stay as they are."""
    return Markup("\n".join(text_of(line) for line in text.splitlines()))


def _history(changes: Sequence[Change]) -> Markup:
    if not changes:
        return section("History", paragraph("Nobody has changed anything on this station.", soft=True))
    rows = [
        (one.version, moment_of(one.time), one.who, _what(one), one.why)
        for one in reversed(changes[-_SHOWN:])
    ]
    return section(
        "History", table("Changes, the newest first", ["version", "time", "who", "change", "why"], rows)
    )


def _what(change: Change) -> str:
    if isinstance(change, ThresholdChange):
        product = f" of {change.product}" if change.product else ""
        if change.value is None:
            return f"threshold{product}: the bundle's own"
        name = "limit of log NFA" if change.is_log_nfa else "threshold"
        return f"{name}{product}: {number(change.value, 6)}"
    counts = f"{len(change.inspect)} inspected, {len(change.ignore)} ignored"
    return f"region of interest: {counts} polygons"
