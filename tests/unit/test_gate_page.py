"""The gate's page opens offline, shows what was measured, and escapes names."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.calibration.calibration_record import BlockChoice
from flowedge.calibration.gate_page import MapTriple, page_from_gate
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateQuantity, GateReport
from flowedge.runtime.colours import heatmap

EVIL = "<script>alert('x')</script>&\"'"


class Read(HTMLParser):
    """Reads every tag with its attributes and the text, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report_of(*, passed: bool) -> GateReport:
    correlation = 0.9987 if passed else 0.4321
    quantities = (
        GateQuantity(name="not_finite", value=0, limit=0, passed=True, summary="0 of 5 images"),
        GateQuantity(name="map_correlation", value=correlation, limit=0.99, passed=passed, summary=EVIL),
        GateQuantity(name="map_error", value=None, limit=2.0, passed=False, summary="inf"),
        GateQuantity(name="synthetic_aupro", value=0.01, limit=None, passed=True, summary="reported"),
    )
    return GateReport(
        passed=passed,
        limits=DEFAULT_LIMITS["int8"],
        good_images=3,
        defect_images=2,
        labelled_images=0,
        quantities=quantities,
    )


def block(
    name: str, sensitivity: float | None, precision: str = "int8", reason: str = "passed"
) -> BlockChoice:
    return BlockChoice(
        name=name,
        macs_share=0.25,
        sensitivity=sensitivity,
        precision=precision,  # type: ignore[arg-type]
        reason=reason,
    )


def picture_of(address: str | None) -> NDArray[np.uint8]:
    assert address is not None
    kind, data = address.split(",")
    assert kind == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded[..., ::-1], np.uint8)


def test_names_are_text_wherever_they_stand() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    flat = np.zeros((4, 4), np.float32)
    triple = MapTriple(name=EVIL, frame=frame, fp32=flat, converted=flat)
    page = Read(page_from_gate(EVIL, report_of(passed=True), [block(EVIL, 1.0, EVIL, EVIL)], [triple]))
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    # Two titles, one of the words, four of the block and its bar, and one caption.
    assert page.text.count(EVIL) >= 8
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)


def test_the_page_asks_the_network_for_nothing() -> None:
    frame = np.zeros((9, 9, 3), np.uint8)
    flat = np.zeros((9, 9), np.float32)
    triples = [MapTriple(name="a", frame=frame, fp32=flat, converted=flat)]
    source = page_from_gate("bottle", report_of(passed=True), [block("a", 1.0)], triples)
    page = Read(source)
    addresses = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(addresses) == 4
    assert all(value and value.startswith("data:image/png;base64,") for value in addresses)
    assert not re.search(r"https?:|@import|url\(", source)


def test_the_table_says_what_passed_and_what_did_not() -> None:
    text = Read(page_from_gate("bottle int8", report_of(passed=False), [], [])).text
    assert "The gate failed: 3 good images, 2 synthetic defects and 0 labelled images" in text
    assert "map_correlation0.43210.99failed" in text
    assert "map_error-2failedinf" in text
    assert "synthetic_aupro0.01-reported" in text
    assert "Sensitivity" not in text
    assert "side by side" not in text
    assert "The gate passed" in Read(page_from_gate("bottle", report_of(passed=True), [], [])).text


def test_a_note_on_the_speed_stands_above_the_quantities() -> None:
    notes = ["bfloat16 is slow here <b>."]
    text = Read(page_from_gate("bottle bf16", report_of(passed=True), [], [], notes=notes)).text
    assert 0 < text.index("bfloat16 is slow here <b>.") < text.index("map_correlation")


def test_bars_are_as_long_as_the_sensitivity() -> None:
    blocks = [
        block("a", 1.0),
        block("b", 4.0, "fp16"),
        block("c", 0.0),
        block("d", math.inf),
        block("e", -1.0),
    ]
    page = page_from_gate("bottle", report_of(passed=True), blocks, [])
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    bars = [(float(one.attrib["width"]), one.attrib["class"]) for one in svg.iter("rect")]
    widths = [width for width, _ in bars]
    assert widths[1] == widths[3] == max(widths) > 0
    assert widths[0] == pytest.approx(widths[1] / 4, abs=0.1)
    assert widths[2] == widths[4] == 0
    assert bars[0][1] != bars[1][1]
    assert "25.0%" in page
    assert (
        Read(page_from_gate("bottle", report_of(passed=True), [block("a", 0.0)], [])).text.count("int8") == 4
    )


def test_a_sensitivity_that_was_not_measured_is_no_number() -> None:
    page = page_from_gate("bottle", report_of(passed=True), [block("a", None), block("b", 2.0)], [])
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len(list(svg.iter("rect"))) == 1
    assert "nan" not in Read(page).text
    page = page_from_gate("bottle", report_of(passed=True), [block("a", None)], [])
    assert "Not measured" in page
    assert "<svg" not in page


def test_the_maps_of_a_row_share_the_colours_of_fp32() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    reference = rng.uniform(3, 5, (40, 60)).astype(np.float32)
    typed = reference + np.float32(0.5)
    typed[0, 0] = math.inf
    reference[1, 1] = typed[1, 1] = math.nan
    page = Read(
        page_from_gate(
            "bottle",
            report_of(passed=True),
            [],
            [MapTriple(name="a.png", frame=frame, fp32=reference, converted=typed)],
        )
    )
    shown = [picture_of(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    low, high = float(np.nanmin(reference)), float(np.nanmax(reference))
    assert np.array_equal(shown[0], frame)
    assert np.array_equal(shown[1], heatmap(reference, low, high))
    assert np.array_equal(shown[2], heatmap(typed, low, high))
    assert np.array_equal(shown[3], heatmap(np.abs(typed - reference), 0, 0.5))
    assert "largest difference 0.5" in page.text


def test_large_frames_are_shrunk() -> None:
    frame = np.zeros((1000, 2000, 3), np.uint8)
    maps = np.zeros((1000, 2000), np.float32)
    page = Read(
        page_from_gate(
            "a", report_of(passed=True), [], [MapTriple(name="a", frame=frame, fp32=maps, converted=maps)]
        )
    )
    assert {picture_of(attributes["src"]).shape for tag, attributes in page.tags if tag == "img"} == {
        (192, 384, 3)
    }
