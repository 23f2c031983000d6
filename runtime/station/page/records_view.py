"""Write the list of records, and the page of one record with its evidence."""

from __future__ import annotations

from typing import Final, get_args

from flowedge.runtime.record import Verdict
from flowedge.runtime.report.charts import Bar, bars
from flowedge.runtime.report.markup import EMPTY, Markup, element, joined
from flowedge.runtime.report.shell import facts, paragraph, section
from flowedge.runtime.report.tables import table
from flowedge.runtime.station.page.layout import moment, number
from flowedge.runtime.station.page.lookup import Filter, Found
from flowedge.runtime.station.page.pictures import VIEWS, View
from flowedge.runtime.station.page.state import WORDS, file_of, part_of, quantity_of
from flowedge.runtime.station.record import Record, Signal

_CHOICES: Final = {"signal": get_args(Signal), "verdict": get_args(Verdict)}


def record_list(found: Found, wanted: Filter) -> Markup:
    """Return the list of records with its filter and its links to older and newer ones."""
    selects = [
        element(
            "label",
            name.capitalize(),
            element(
                "select",
                element("option", "all", value=""),
                *(
                    element("option", one.replace("_", " "), value=one, selected=one == getattr(wanted, name))
                    for one in choices
                ),
                name=name,
            ),
        )
        for name, choices in _CHOICES.items()
    ]
    part = element(
        "label",
        "Part",
        element(
            "input",
            type="search",
            name="part",
            value=wanted.part or "",
            maxlength=200,
            placeholder="whole id",
        ),
    )
    form = element(
        "form",
        *selects,
        part,
        element("button", "Show", type="submit"),
        method="get",
        action="/records",
        class_="tools",
    )
    links = element(
        "nav",
        element("a", "Newest", href=f"/records?{wanted.query()}"),
        element("a", "← Newer", href=f"/records?{wanted.query(after=found.newer)}") if found.newer else None,
        element("a", "Older →", href=f"/records?{wanted.query(before=found.older)}") if found.older else None,
        aria_label="Slices",
        class_="slices",
    )
    words = []
    if not found.records:
        words.append(paragraph("No record matches." if not wanted.is_open else "There is no record yet."))
    if found.searched_to and found.older:
        words.append(
            paragraph(
                f"Records down to number {found.searched_to} were searched. Older ones follow.", soft=True
            )
        )
    listed = _table(found.records) if found.records else EMPTY
    return section("Records", form, *words, listed, links)


def _table(records: list[Record]) -> Markup:
    rows = []
    for one in records:
        name, value, limit = quantity_of(one)
        rows.append(
            (
                element(
                    "a",
                    element("img", src=f"/records/{one.number}/thumbnail", alt="", loading="lazy"),
                    href=f"/records/{one.number}",
                    aria_label=f"Record {one.number}",
                    class_="small",
                ),
                element("a", one.number, href=f"/records/{one.number}"),
                moment(one.time),
                one.part or file_of(one),
                element("b", WORDS[one.signal], class_=f"signal {one.signal}"),
                one.verdict.replace("_", " "),
                f"{name} {number(value)}" if value is not None else "",
                number(limit) if limit is not None else "",
                one.reason or one.problem,
                one.product,
            )
        )
    columns = ["", "record", "time", "part", "signal", "verdict", ">value", ">limit", "reason", "product"]
    return table("Records, the newest first", columns, rows)


def record_page(
    record: Record, *, first: int, last: int, views: tuple[View, ...], has_file: bool, view: View
) -> Markup:
    """Return the page of one record.

    Args:
        record: The record.
        first: The number of the oldest record.
        last: The number of the newest record.
        views: The kinds of pictures that can still be drawn from the result.
        has_file: True where the archive has the evidence picture.
        view: The kind of picture that is shown.
    """
    name, value, limit = quantity_of(record)
    verdict = element(
        "div",
        element("p", WORDS[record.signal], class_="word"),
        element(
            "div", element("p", part_of(record), class_="title"), element("p", record.reason, class_="reason")
        ),
        class_=f"verdict {record.signal}",
    )
    neighbours = element(
        "nav",
        element("a", "← Older", href=f"/records/{record.number - 1}") if record.number > first else None,
        element("a", "Newer →", href=f"/records/{record.number + 1}") if record.number < last else None,
        element("a", "All records", href="/records"),
        element("a", "JSON", href=f"/records/{record.number}/json"),
        aria_label="Neighbours",
        class_="slices",
    )
    entries: list[tuple[str, object]] = [
        ("record", record.number),
        ("time", moment(record.time)),
        ("part", record.part),
        ("product", record.product),
        ("verdict", record.verdict.replace("_", " ")),
        ("signal", WORDS[record.signal]),
        ("reason", record.reason),
        ("problem", record.problem),
        ("severity", record.severity),
        (name, number(value)),
        ("limit", number(limit)),
        ("version of the limit", record.threshold_version),
        ("late", "yes" if record.late else "no"),
        ("frames dropped before", record.dropped_before),
        ("source", record.source),
        ("frame", record.source_id),
        ("engine", f"{record.engine} {record.engine_version}".strip()),
        ("reason for the engine", record.engine_reason),
        ("precision", record.precision),
        ("bundle", element("code", record.bundle_sha256) if record.bundle_sha256 else ""),
        ("id", element("code", record.id)),
        ("run", element("code", record.run)),
        ("archive", record.picture),
    ]
    return joined(
        section(
            f"Record {record.number}",
            verdict,
            neighbours,
            _evidence(record, views, has_file, view),
            identifier="record",
        ),
        _regions(record),
        section("Facts", facts(entries)),
        _stages(record),
    )


def _evidence(record: Record, views: tuple[View, ...], has_file: bool, view: View) -> Markup:
    if not views and not has_file:
        return paragraph("The archive has no picture of this record.", soft=True)
    address = f"/records/{record.number}/picture"
    if view in views:
        address += f"?view={view}"
    links = [
        element(
            "a",
            one.capitalize(),
            href=f"/records/{record.number}?view={one}",
            aria_current="true" if one == view else None,
        )
        for one in VIEWS
        if one in views
    ]
    image = element(
        "img", src=address, alt=f"{view if view in views else 'evidence'} of record {record.number}"
    )
    return joined(
        element("div", *links, class_="views") if links else EMPTY,
        element("div", image, class_=f"evidence {record.signal}"),
    )


def _regions(record: Record) -> Markup:
    if not record.regions:
        return EMPTY
    rows = [
        (
            place,
            f"{one.left}, {one.top}",
            f"{one.width_px} x {one.height_px}",
            one.area_px,
            f"{one.length_px:.0f}",
            "" if one.area_mm2 is None else number(one.area_mm2),
            "" if one.length_mm is None else number(one.length_mm),
            number(one.peak),
        )
        for place, one in enumerate(record.regions, 1)
    ]
    columns = [
        "region",
        "left, top",
        "size in px",
        ">area px",
        ">length px",
        ">area mm²",
        ">length mm",
        ">peak",
    ]
    more = (
        paragraph(f"{record.regions_left_out} further regions are not listed.", soft=True)
        if record.regions_left_out
        else None
    )
    return section("Regions", table("Regions, the surest first", columns, rows), more)


def _stages(record: Record) -> Markup:
    if not record.stages_ms:
        return EMPTY
    entries = [
        Bar(name=name, value=ms, shown=f"{ms:.1f} ms", style="c0") for name, ms in record.stages_ms.items()
    ]
    return section("Time", bars("Time of each stage in ms", entries, "", "this record"))
