"""The machine is told ok only for a frame that was seen, in time, and accepted by the rule of the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowedge.errors import SettingsError
from flowedge.manifest import NfaThreshold
from flowedge.runtime.record import Verdict
from flowedge.runtime.result import Result
from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.decision import Decision, DecisionSettings, FrameFacts
from flowedge.runtime.station.record import MOST_REGIONS
from support.made_result import made_result
from support.station_records import made_record

measure: Any = pytest.importorskip("skimage.measure")  # the type checker knows nothing of it
FACTS = FrameFacts(source="camera")


def decision(**fields: Any) -> Decision:
    return Decision(settings_from(fields, DecisionSettings, name="station.toml", folder=Path()))


def judged(verdict: Verdict, mask: np.ndarray | None = None, **fields: Any) -> Result:
    """Make a result whose pixels of a mask are 3 and all others 0, with a pixel threshold of 2."""
    values = np.zeros((60, 80)) if mask is None else 3.0 * mask
    return made_result(np.zeros((*values.shape, 3), np.uint8), values, verdict=verdict, **fields)


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Draw filled boxes of top, left, height and width."""
    mask = np.zeros((60, 80))
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = 1
    return mask


@pytest.mark.parametrize(
    ("verdict", "signal", "reason"),
    [
        ("ok", "ok", "score 0 is not above the threshold 2.5"),
        ("anomalous", "nok", "score 3 is above the threshold 2.5"),
        ("unknown", "nok", "no threshold"),
        ("not_inspected", "nok", "not inspected: too dark"),
    ],
)
def test_the_verdict_of_the_bundle_decides_by_default(verdict: Verdict, signal: str, reason: str) -> None:
    problem = {"problem": "too dark"} if verdict == "not_inspected" else {}
    outcome = decision()(
        judged(verdict, drawn((1, 1, 2, 2)) if verdict == "anomalous" else None, **problem), FACTS
    )
    assert outcome.signal == signal
    assert reason in outcome.reason
    assert len(outcome.regions) == (verdict == "anomalous")


def test_the_reason_names_the_limit_of_false_alarms_where_it_decides() -> None:
    nfa = NfaThreshold(form="block", log_nfa=-1.0)
    result = judged("anomalous", nfa=nfa, network_log_nfa=np.full((60, 80), -3.5))
    assert decision()(result, FACTS).reason == "log NFA -3.5 is below the limit -1"


@given(
    st.sampled_from(["ok", "anomalous", "unknown", "not_inspected"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        [
            {},
            {"nok_frames": 3, "of_last_frames": 5},
            {"rule": "regions", "limits": {"area_mm2": 1e5}, "scale": {"mm_per_px": 1.0}},
        ]
    ),
)
def test_nothing_that_was_not_inspected_or_is_late_is_ok(
    verdict: Verdict, late: bool, has_problem: bool, fields: dict[str, Any]
) -> None:
    facts = FrameFacts(late=late, problem="the frame is frozen" if has_problem else "")
    outcome = decision(**fields)(judged(verdict), facts)
    if late or has_problem or verdict == "not_inspected":
        assert outcome.signal == "nok"
    assert decision(**fields)(None, facts).signal == "nok"


def test_a_late_verdict_counts_as_it_is_where_the_file_says_so() -> None:
    facts = FrameFacts(late=True)
    assert decision(late="verdict")(judged("ok"), facts).signal == "ok"
    assert decision()(judged("ok"), facts).reason == (
        "late: the verdict came after its deadline (score 0 is not above the threshold 2.5)"
    )


# The rows were worked out by hand: a frame is a (anomalous), o (ok) or n (not inspected), a signal is + or -.
@pytest.mark.parametrize(
    ("needed", "last", "frames", "signals"),
    [
        (1, 1, "oaaon", "+--+-"),
        (2, 3, "oaoaoooaa", "+++-++++-"),
        (3, 5, "aaoaooooa", "+++--++++"),
        (1, 3, "oaoooo", "+---++"),
        (2, 3, "onaoo", "+---+"),
    ],
)
def test_n_of_the_last_m_frames_make_the_signal_nok(
    needed: int, last: int, frames: str, signals: str
) -> None:
    decide = decision(nok_frames=needed, of_last_frames=last)
    results = {"o": judged("ok"), "a": judged("anomalous"), "n": None}
    assert "".join("+" if decide(results[one], FACTS).signal == "ok" else "-" for one in frames) == signals


def test_each_source_and_product_has_its_own_last_frames_and_a_restart_forgets_none() -> None:
    decide = decision(nok_frames=2, of_last_frames=3)
    assert decide(judged("anomalous"), FrameFacts(source="left")).signal == "ok"
    assert decide(judged("anomalous"), FrameFacts(source="right")).signal == "ok"
    assert decide(judged("anomalous"), FrameFacts(source="left", product="cap")).signal == "ok"
    outcome = decide(judged("anomalous"), FrameFacts(source="left"))
    assert (outcome.signal, outcome.reason[:38]) == ("nok", "2 of the last 2 frames rejected, nok f")
    again = decision(nok_frames=2, of_last_frames=3)
    again.remember([made_record(verdict="anomalous", signal="ok"), made_record(source="other")])
    assert again(judged("anomalous"), FACTS).signal == "nok"


def test_the_last_frames_of_sources_that_came_long_ago_are_forgotten() -> None:
    decide = decision(nok_frames=2, of_last_frames=3)
    for number in range(1100):
        decide(judged("anomalous"), FrameFacts(source=f"folder {number}"))
        decide(judged("ok" if number else "anomalous"), FACTS)
    assert len(decide._rejected) == 1000
    assert decide(judged("anomalous"), FACTS).reason[:30] == "1 of the last 3 frames rejecte"


REGIONS = {"rule": "regions", "scale": {"mm_per_px": 0.5}}


@pytest.mark.parametrize(
    ("limits", "boxes", "signal", "reason"),
    [
        # A box of 4 x 6 pixels of 0.5 mm has 6 mm².
        ({"area_mm2": 6.0}, [(5, 5, 4, 6)], "nok", "a region of 6 mm² reaches the limit of 6 mm²"),
        ({"area_mm2": 6.01}, [(5, 5, 4, 6)], "ok", "all regions are below the limits"),
        # A row of 10 pixels is 5 mm long.
        ({"length_mm": 5.0}, [(5, 5, 1, 10)], "nok", "a region 5 mm long reaches the limit of 5 mm"),
        ({"length_mm": 5.01}, [(5, 5, 1, 10)], "ok", "all regions are below the limits"),
        ({"area_mm2": 3.0, "length_mm": 5.0}, [(5, 5, 1, 10)], "nok", "5 mm long"),
        # Two boxes of 4 pixels have 2 mm² together.
        ({"total_area_mm2": 2.0}, [(0, 0, 2, 2), (9, 9, 2, 2)], "nok", "all regions have 2 mm² and reach"),
        ({"total_area_mm2": 2.1}, [(0, 0, 2, 2), (9, 9, 2, 2)], "ok", "all regions are below the limits"),
        ({"area_mm2": 1.0}, [], "ok", "there is no region"),
    ],
)
def test_limits_of_regions_decide_in_mm(
    limits: dict[str, float], boxes: list[tuple[int, int, int, int]], signal: str, reason: str
) -> None:
    for verdict in ("ok", "anomalous") if boxes else ("ok",):
        outcome = decision(**REGIONS, limits=limits)(judged(verdict, drawn(*boxes)), FACTS)
        assert outcome.signal == signal
        assert reason in outcome.reason


def test_what_cannot_be_measured_is_not_accepted_by_limits_of_regions() -> None:
    decide = decision(**REGIONS, limits={"area_mm2": 6.0})
    assert "no region to measure" in decide(judged("anomalous"), FACTS).reason
    outcome = decide(judged("ok", pixel_threshold=None), FACTS)
    assert (outcome.signal, "no threshold for pixels" in outcome.reason) == ("nok", True)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_sizes_agree_with_scikit_image_and_the_signal_with_its_own_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((40, 40)) > rng.uniform(0.5, 0.9)).astype(float)
    props = measure.regionprops(measure.label(mask, connectivity=1), spacing=(0.5, 0.5))
    area = max(float(one.area) for one in props)
    total = sum(float(one.area) for one in props)
    for limits, reached in (
        ({"area_mm2": area}, True),
        ({"area_mm2": area + 0.1}, False),
        ({"total_area_mm2": total}, True),
        ({"total_area_mm2": total + 0.1}, False),
    ):
        outcome = decision(**REGIONS, limits=limits)(judged("anomalous", mask), FACTS)
        assert (outcome.signal == "nok") == reached
    assert max(one.area_mm2 or 0 for one in outcome.regions) == area
    assert len(outcome.regions) + outcome.regions_left_out == len(props)
    assert len(outcome.regions) <= MOST_REGIONS

    def diagonal(one: Any) -> float:
        top, left, bottom, right = one.bbox
        return math.hypot(bottom - top, right - left)

    longest = max(one.feret_diameter_max for one in sorted(props, key=diagonal)[-40:])
    assert max(one.length_mm or 0 for one in outcome.regions) == pytest.approx(longest, abs=0.5)


def test_severity_is_the_last_class_that_is_reached() -> None:
    classes = [
        {"name": "cosmetic", "length_mm": 1.0},
        {"name": "minor", "length_mm": 4.0},
        {"name": "major", "area_mm2": 20.0, "score": 9.0},
    ]
    decide = decision(scale={"mm_per_px": 0.5}, severity=classes)
    sizes = {(1, 1): None, (1, 3): "cosmetic", (1, 9): "minor", (9, 9): "major"}
    for (height, width), name in sizes.items():
        assert decide(judged("anomalous", drawn((0, 0, height, width))), FACTS).severity == name
    assert decide(judged("anomalous", 4 * drawn((0, 0, 1, 1))), FACTS).severity == "major"
    assert decide(judged("ok", drawn((0, 0, 9, 9))), FACTS).severity is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nok_frames": 3}, "nok_frames must not be larger"),
        ({"rule": "regions"}, "belong together"),
        ({"limits": {"area_mm2": 1.0}}, "belong together"),
        ({"rule": "regions", "limits": {"area_mm2": 1.0}}, r"need \[decision.scale\]"),
        ({"severity": [{"name": "minor"}]}, "needs area_mm2"),
        ({"severity": [{"name": "minor", "lenght_mm": 1.0}]}, "Did you mean length_mm"),
        ({"late": "maybe"}, "maybe"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        decision(**fields)


def test_the_outcome_fits_a_record() -> None:
    outcome = decision(scale={"mm_per_px": 0.5})(judged("anomalous", drawn((0, 0, 2, 2))), FACTS)
    record = made_record(
        verdict="anomalous", signal=outcome.signal, reason=outcome.reason, regions=outcome.regions
    )
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
