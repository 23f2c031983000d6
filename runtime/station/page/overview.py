"""Write the live page: the newest verdict and picture, and the sections that a script fetches again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowedge.runtime.report.charts import Bar, bars, charts
from flowedge.runtime.report.markup import EMPTY, Markup, element, joined
from flowedge.runtime.report.shell import facts, figures, notice, paragraph, section
from flowedge.runtime.report.tables import table
from flowedge.runtime.station.live import Live, PartState
from flowedge.runtime.station.page.controls import Area
from flowedge.runtime.station.page.health import LONGEST_SILENCE_S
from flowedge.runtime.station.page.history import score_history
from flowedge.runtime.station.page.layout import ago, moment, moment_of, number
from flowedge.runtime.station.page.pictures import VIEWS, View
from flowedge.runtime.station.page.state import WORDS, LiveState, part_of
from flowedge.runtime.station.record import Event, Record

_LEVELS: Final = {"info": "", "warning": "warning", "alarm": "wrong"}
_STATE_WORDS: Final = {"ok": "ok", "warning": "check", "down": "down"}
_ORDER: Final = {"down": 0, "warning": 1, "ok": 2}
_STATE_STYLES: Final = {"ok": "ok", "warning": "warning", "down": "wrong"}
_LAST: Final = 12


def live_section(state: LiveState, area: Area, view: View) -> Markup:
    """Return the verdict, the picture with the region of interest, and the facts of the record.

    Args:
        state: The state that is shown.
        area: The region of interest.
        view: The kind of picture.
    """
    verdict = element(
        "div",
        element("p", state.word, class_="word", id="word"),
        element(
            "div",
            element("p", state.title, class_="title", id="title"),
            element("p", state.reason, class_="reason", id="reason"),
        ),
        class_=f"verdict {state.look}",
        id="verdict",
        role="status",
    )
    views = element(
        "div",
        *(
            element(
                "a",
                name.capitalize(),
                href=f"/?view={name}",
                data_view=name,
                aria_current="true" if name == view else None,
            )
            for name in VIEWS
        ),
        class_="views",
    )
    stage = element(
        "div",
        element(
            "img",
            id="picture",
            alt=f"{view} of record {state.number}",
            src=f"/live.jpg?view={view}&number={state.number}" if state.picture else "/static/none.svg",
            width=state.width or None,
            height=state.height or None,
        ),
        overlay(area, (state.height, state.width)),
        element("p", f"The picture is {state.age} old", class_="age", id="age"),
        class_=f"stage {state.look}",
        id="stage",
    )
    aside = element("aside", views, element("div", facts(state.facts), id="facts"))
    return element(
        "section",
        verdict,
        element("ul", *(element("li", one) for one in state.notes), class_="notes", id="notes"),
        element("div", stage, aside, class_="now"),
        id="live",
        data_view=view,
        aria_label="Newest part",
    )


def overlay(area: Area, frame: tuple[int, int]) -> Markup:
    """Return the region of interest as a drawing over a picture, in pixels of the frame.

    Args:
        area: The region of interest.
        frame: The height and the width of the frame, 0 where they are not known.
    """
    height, width = frame if all(frame) else area.frame_size or (0, 0)
    if not height or not width:
        return EMPTY
    shapes = [
        element("polygon", points=" ".join(f"{x:g},{y:g}" for x, y in polygon), class_=kind)
        for kind, polygons in (("inspect", area.inspect), ("ignore", area.ignore))
        for polygon in polygons
    ]
    if not shapes:
        return EMPTY
    return element(
        "svg", *shapes, viewBox=f"0 0 {width} {height}", aria_label="Region of interest", role="img"
    )


def status_sections(
    live: Live, *, recent: Sequence[Record], rejected: Sequence[Record], events: Sequence[Event]
) -> Markup:
    """Return the sections below the live picture: numbers, thumbnails, charts, health and events.

    Args:
        live: The counters and states.
        recent: The newest records, in the order of their numbers.
        rejected: The newest records whose signal was ``nok``, in the order of their numbers.
        events: The newest events, in the order of their numbers.
    """
    return joined(
        section("Numbers", _numbers(live), identifier="numbers"),
        section(
            "Last rejected parts",
            thumbnails(rejected) if rejected else paragraph("No part was rejected yet.", soft=True),
            identifier="rejected",
        ),
        section(
            "Last parts",
            thumbnails(recent[-_LAST:]) if recent else paragraph("No part was judged yet.", soft=True),
            identifier="recent",
        ),
        section("Scores and times", charts(score_history(recent), _times(live)), identifier="charts"),
        section("Health", health_table(live.parts, live), drift_bars(live.parts), identifier="health"),
        section("Last events", event_table(events[::-1]), identifier="events"),
    )


def thumbnails(records: Sequence[Record]) -> Markup:
    """Return small pictures of records, the newest first, each a link to the record's own page."""
    return element("div", *(_thumbnail(one) for one in reversed(records)), class_="strip")


def _thumbnail(record: Record) -> Markup:
    word = WORDS[record.signal]
    return element(
        "a",
        element("img", src=f"/records/{record.number}/thumbnail", alt="", loading="lazy"),
        element("b", word, class_=record.signal),
        element("span", record.part or f"#{record.number}"),
        href=f"/records/{record.number}",
        class_=f"thumbnail {record.signal}",
        title=f"{part_of(record)}: {word}, {record.reason}",
    )


def _numbers(live: Live) -> Markup:
    counts, rates = live.counts, live.rates
    share = 0.0 if not rates.records else 100 * rates.nok / rates.records
    uninspected = sum(n for (verdict, _), n in counts.records.items() if verdict == "not_inspected")
    return figures(
        [
            ("parts a minute", f"{60 * rates.records / rates.seconds:.0f}"),
            ("rejected in the last minute", f"{share:.1f} %"),
            ("parts since the start", counts.total),
            ("rejected since the start", counts.of_signal("nok")),
            ("not inspected", uninspected),
            ("late", counts.late),
            ("frames dropped", counts.dropped),
            ("running for", ago(live.uptime_s)),
        ]
    )


def _times(live: Live) -> Markup:
    stages = [(name, times) for name, times in live.stages.items() if times.recent_ms]
    entries = [
        Bar(
            name=name,
            value=times.quantile_ms(0.5),
            shown=f"{times.quantile_ms(0.5):.1f}, p99 {times.quantile_ms(0.99):.1f}",
            style="c0",
            spread=(
                times.quantile_ms(0.01),
                times.quantile_ms(0.1),
                times.quantile_ms(0.9),
                times.quantile_ms(0.99),
            ),
        )
        for name, times in stages
    ]
    return bars(
        "Time of each stage in ms", entries, "", "median, 10 to 90 % and 1 to 99 % of the newest parts"
    )


def health_table(parts: Sequence[PartState], live: Live) -> Markup:
    """Return the states of all parts of the station."""
    if not parts:
        return paragraph("No part has told its state yet.", soft=True)
    age = live.beat_age_s
    slow = (
        [notice(f"The loop has given no sign of life for {ago(age)}.")]
        if age is not None and age > LONGEST_SILENCE_S
        else []
    )
    rows = [
        (
            one.name,
            element("span", _STATE_WORDS[one.state], class_=f"state {_STATE_STYLES[one.state]}"),
            one.text,
            _value(one),
            moment_of(one.since),
        )
        for one in sorted(parts, key=lambda one: _ORDER[one.state])
        if one.kind != "drift"
    ]
    return joined(*slow, table("Parts of the station", ["part", "state", "reason", ">value", "since"], rows))


def _value(part: PartState) -> str:
    if part.value is None:
        return ""
    if part.unit == "bytes":
        return f"{part.value / 1e9:.1f} GB"
    limit = "" if part.limit is None else f" of {number(part.limit)}"
    return f"{number(part.value)}{limit} {part.unit}".strip()


def drift_bars(parts: Sequence[PartState]) -> Markup:
    """Return the drift statistics as bars, each against its limit."""
    watched = [one for one in parts if one.kind == "drift"]
    if not watched:
        return EMPTY
    rows = []
    for one in watched:
        share = 0.0
        if one.value is not None and one.limit:
            share = min(1.0, abs(one.value) / abs(one.limit))
        bar = element(
            "svg",
            element("rect", width=100, height=8, class_="track"),
            element("rect", width=f"{100 * share:.1f}", height=8, class_=_STATE_STYLES[one.state]),
            viewBox="0 0 100 8",
            preserveAspectRatio="none",
            role="img",
            aria_label=f"{100 * share:.0f} % of the alarm limit",
            class_="level",
        )
        rows.append(
            (
                one.name,
                element("span", _STATE_WORDS[one.state], class_=f"state {_STATE_STYLES[one.state]}"),
                bar,
                _value(one),
                one.text,
            )
        )
    return table(
        "Drift against the calibration", ["quantity", "state", "to the alarm", ">value", "text"], rows
    )


def event_table(events: Sequence[Event]) -> Markup:
    """Return events as a table, in the given order."""
    if not events:
        return paragraph("There is no event yet.", soft=True)
    rows = [
        (
            moment(one.time),
            element("span", one.level, class_=_LEVELS[one.level] or "absent"),
            one.kind.replace("_", " "),
            one.text,
            element("a", one.record, href=f"/records/{one.record}") if one.record else "",
        )
        for one in events
    ]
    return table("Events", ["time", "level", "kind", "text", "after record"], rows)
