"""The test for drift keeps its bound on false alarms, finds real changes, and outlives a restart."""

from __future__ import annotations

import datetime
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from flowedge.calibration.calibrate import calibrate_bundle
from flowedge.calibration.threshold import ThresholdRequest
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.frame_check import frame_statistics
from flowedge.runtime.opening.opening import open_engine
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.watch import Watch, WatchSettings, drift_keeper
from flowedge.runtime.station.watch.drift import DriftState, DriftWatch
from flowedge.runtime.station.watch.quantities import PICTURE, QUANTITIES, picture_values, words_for
from flowedge.runtime.station.watch.reference import Reference, reference_of
from flowedge.runtime.station.watch.sequential import SequentialTest, TestState
from flowedge.runtime.station.watch.spacing import autocorrelation
from support.tiny_bundle import write_tiny_bundle

Floats = NDArray[np.float64]
NEVER = 1e-6  # the probability at which a right test fails, for one that draws numbers


def _test(reference: Sequence[float] | Floats, seed: int = 0) -> SequentialTest:
    return SequentialTest.against(reference, random.Random(seed))


def _alarms(test: SequentialTest, values: Floats, limit: float) -> int:
    alarms = 0
    for value in values:
        test.add(value)
        if test.evidence >= limit:
            alarms += 1
            test.forget()
    return alarms


@pytest.mark.parametrize("count", [2, 100, 2000])
@pytest.mark.parametrize("levels", [0, 5], ids=["continuous", "five levels"])
def test_places_among_exchangeable_values_are_uniform_and_independent(count: int, levels: int) -> None:
    rng = np.random.default_rng(count)

    def values(number: int) -> Floats:
        drawn = rng.exponential(size=number)
        return np.minimum(np.floor(drawn * 2), levels - 1) if levels else drawn

    test = _test(values(count))
    places = np.array([test.add(value) for value in values(5000)])
    assert stats.kstest(places, "uniform").pvalue > NEVER
    pairs = np.histogram2d(places[::2], places[1::2], bins=4)[0].ravel()
    assert stats.chisquare(pairs).pvalue > NEVER


@pytest.mark.parametrize("count", [2, 100])
@pytest.mark.parametrize("limit", [20, 200])
def test_false_alarms_are_no_more_frequent_than_the_limit_says(count: int, limit: int) -> None:
    alarms, seen = 0, 0
    for run in range(10):
        rng = np.random.default_rng([run, count])
        alarms += _alarms(_test(rng.normal(size=count), run), rng.normal(size=1000), limit)
        seen += 1000
    assert stats.poisson.sf(alarms - 1, seen / limit) > NEVER
    # The bound is not so loose that the test would be blind.
    assert stats.poisson.cdf(alarms, seen / limit / 10) > NEVER
    assert alarms or limit > 100


@pytest.mark.parametrize(
    ("change", "direction"),
    [
        (lambda drawn: drawn + 1, "higher"),
        (lambda drawn: drawn - 1, "lower"),
        (lambda drawn: drawn * 4, "more scattered"),
    ],
)
def test_a_change_is_found_with_its_direction_and_its_beginning(change: Any, direction: str) -> None:
    rng = np.random.default_rng(1)
    test = _test(rng.normal(size=200))
    for number in range(500):
        test.add(rng.normal(), str(number))
    test.forget()
    number = 500
    for number in range(500, 700):
        test.add(change(rng.normal()), str(number))
        if test.evidence >= 1e8:
            break
    found = test.found()
    assert found.direction == direction
    assert number < 600
    assert abs(int(found.label) - 500) <= 15
    assert found.values == number - int(found.label) + 1


def test_a_test_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    rng = np.random.default_rng(2)
    first = _test(rng.normal(size=300), 5)
    values = rng.normal(size=200)
    for value in values[:100]:
        first.add(value)
    copy = msgspec.json.decode(msgspec.json.encode(first.state), type=TestState)
    assert copy == first.state
    generators = random.Random(7), random.Random(7)
    tests = [SequentialTest(state, one) for state, one in zip((first.state, copy), generators, strict=True)]
    assert [tests[0].add(value) for value in values[100:]] == [tests[1].add(value) for value in values[100:]]
    assert tests[0].evidence == tests[1].evidence > 0


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = _test([1.0, 2.0, 3.0]).state
    changes: list[dict[str, Any]] = [
        {"gaps": [1, 1]},
        {"gaps": [1, 1, 0, 1]},
        {"edges": [3.0, 1.0, 2.0]},
        {"evidence": []},
    ]
    for wrong in changes:
        content = msgspec.json.encode({**msgspec.to_builtins(state), **wrong})
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(content, type=TestState)


def test_autocorrelation_is_that_of_ranks() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=4000)
    wandering = _wandering(noise, 0.8)
    ranks = stats.rankdata(wandering)
    assert autocorrelation(wandering) == pytest.approx(np.corrcoef(ranks[1:], ranks[:-1])[0, 1], abs=2e-3)
    assert abs(autocorrelation(noise)) < 0.1
    assert autocorrelation(np.full(100, 3.0)) == 0
    assert autocorrelation(np.r_[wandering, np.nan]) == autocorrelation(wandering)


def _wandering(noise: Floats, memory: float) -> Floats:
    """Return a first-order autoregressive series with unit variance."""
    values = np.empty(len(noise))
    last = 0.0
    for place, one in enumerate(noise):
        last = values[place] = memory * last + math.sqrt(1 - memory**2) * one
    return values


def _run(watch: DriftWatch, rows: Floats, start: int = 0) -> Iterator[tuple[int, Event]]:
    """Give the watch a row for each inspected frame, and yield each event with the number of its frame."""
    for number, row in enumerate(rows, start):
        if watch.is_next_watched():
            for event in watch.take(f"frame {number}", row):
                yield number, event


def _settings(**settings: Any) -> WatchSettings:
    return WatchSettings(**{"learn": 100, "frames_per_false_alarm": 100_000, **settings})


def _rows(count: int, seed: int, **shifts: float) -> Floats:
    rows = np.random.default_rng(seed).normal(100, 10, (count, len(QUANTITIES)))
    for name, shift in shifts.items():
        rows[:, QUANTITIES.index(name)] += shift
    return rows


def test_a_drift_is_one_event_which_tells_quantity_size_and_beginning_and_another_when_it_is_over() -> None:
    watch = DriftWatch(_settings(), Reference(), rng=random.Random(0))
    events = list(_run(watch, _rows(400, 0)))
    assert [event.kind for _, event in events] == ["watch_learned"]
    ((number, alarm),) = _run(watch, _rows(300, 1, brightness=-20), 400)
    assert (alarm.kind, alarm.level) == ("drift", "alarm")
    assert number < 430
    data = alarm.data
    assert (data["quantity"], data["direction"], data["compared_with"]) == ("brightness", "lower", "line")
    assert data["since"] in {f"frame {n}" for n in range(395, 406)}
    assert data["watched_frames"] == number - int(data["since"].split()[1]) + 1
    assert data["value"] == pytest.approx(80, abs=6)
    assert data["shift_sd"] == pytest.approx(-2, abs=0.7)
    assert data["evidence_log10"] >= data["limit_log10"] == pytest.approx(math.log10(100_000 * 13), abs=0.01)
    assert "brightness is lower than in the first frames of this station: " in alarm.text
    status = next(one for one in watch.status()["quantities"] if one["quantity"] == "brightness")
    assert status["drifted"]["since"] == data["since"]
    events = list(_run(watch, _rows(300, 2), 700))
    assert [event.kind for _, event in events] == ["drift_over"]
    assert watch.status()["quantities"][1]["drifted"] is None


def test_a_change_that_is_too_small_to_matter_raises_no_alarm() -> None:
    values = {name: column.tolist() for name, column in zip(QUANTITIES, _rows(1000, 0).T, strict=True)}
    for smallest, alarms in ((1.0, 0), (0.1, 1)):
        settings = _settings(smallest_shift=smallest, learn=50)
        watch = DriftWatch(settings, Reference(values=values), rng=random.Random(0))
        events = [event for _, event in _run(watch, _rows(1500, 1, contrast=4)) if event.kind == "drift"]
        assert len(events) == alarms


def test_neighbours_that_depend_on_each_other_are_watched_at_a_larger_spacing() -> None:
    rng = np.random.default_rng(4)
    rows = _rows(3000, 3)
    watch = DriftWatch(_settings(), Reference(), rng=random.Random(0))
    list(_run(watch, rows))
    assert watch.state.spacing == 1
    rows[:, 2] = 100 + 10 * _wandering(rng.normal(size=len(rows)), 0.8)
    watch = DriftWatch(_settings(), Reference(), rng=random.Random(0))
    events = [event for _, event in _run(watch, rows)]
    assert watch.state.spacing in (4, 8, 16)
    assert events[0].data["spacing"] == watch.state.spacing
    assert abs(events[0].data["autocorrelation"]) <= 0.3
    assert [event.kind for event in events] == ["watch_learned"]


def test_a_dependence_that_no_spacing_removes_is_told() -> None:
    rows = _rows(100 * 64 * 3, 5)
    rows[:, 3] = np.arange(len(rows))
    watch = DriftWatch(_settings(), Reference(), rng=random.Random(0))
    (_, learned) = next(_run(watch, rows))
    assert (learned.kind, learned.level) == ("watch_learned", "warning")
    assert "Neighbouring values still have the correlation" in learned.text


def test_frames_that_differ_from_the_calibration_from_the_beginning_raise_an_alarm_after_learning() -> None:
    values = {name: column.tolist() for name, column in zip(QUANTITIES, _rows(200, 0).T, strict=True)}
    watch = DriftWatch(_settings(), Reference(values=values), rng=random.Random(0))
    (_, learned), (number, alarm) = _run(watch, _rows(150, 1, score=20))
    assert learned.data["references"]["score"] == "calibration"
    assert (number, alarm.data["quantity"], alarm.data["compared_with"]) == (99, "score", "calibration")
    assert "score is higher than in the calibration" in alarm.text
    # A person may accept the new state as the reference.
    watch.learn_anew()
    events = [event for _, event in _run(watch, _rows(1000, 2, score=20), 150)]
    assert [event.kind for event in events] == ["watch_learned"]
    assert set(events[0].data["references"].values()) == {"line"}


def _record(number: int = 0, **fields: Any) -> Record:
    return Record(
        **{
            "station": "s",
            "run": "r",
            "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
            + datetime.timedelta(seconds=number),
            "monotonic_ns": 0,
            "source": "camera",
            "source_id": str(number),
            "precision": "fp32",
            "threshold": 1.0,
            "score": 0.5 + 0.01 * (number * 7919 % 13),
            "verdict": "ok",
            "signal": "ok",
            "reason": "",
            **fields,
        }
    )


def _picture(seed: int, gain: float = 1.0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    picture = rng.normal(110 + rng.normal(0, 5), 20, (96, 128, 3)) * gain
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_a_watch_goes_on_after_a_restart_and_learns_anew_when_asked(tmp_path: Path) -> None:
    bundles = {"": write_tiny_bundle(tmp_path / "a.flowedge")}

    def watch() -> Watch:
        return Watch(WatchSettings(learn=50), tmp_path, bundles)

    first = watch()
    events = [event for n in range(60) for event in first.seen(_record(n), _picture(n))]
    assert [event.kind for event in events] == ["watch_learned"]
    assert "the bundle was not calibrated" in events[0].text
    first.close()
    before = first.status()[""]["drift"]
    second = watch()
    assert not second.seen(_record(60), _picture(60))
    after = second.status()[""]["drift"]
    assert (after["phase"], after["inspected"]) == ("watching", before["inspected"] + 1)
    alarms = [event for n in range(61, 100) for event in second.seen(_record(n), _picture(n, 0.7))]
    assert {"brightness"} <= {event.data["quantity"] for event in alarms}
    assert {event.kind for event in alarms} == {"drift"}
    second.close()
    # A bundle with another hash, or another threshold, begins anew.
    third = watch()
    assert not third.seen(_record(100, threshold=2.0), _picture(100, 0.7))
    assert third.status()[""]["drift"]["phase"] == "learning"
    third.close()


def test_a_station_that_is_asked_to_learn_takes_the_next_frames_as_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_keeper, "_LOOK_S", 0.02)
    watch = Watch(WatchSettings(learn=50), tmp_path, {"": write_tiny_bundle(tmp_path / "a.flowedge")})
    for number in range(50):
        watch.seen(_record(number), _picture(number))
    assert watch.status()[""]["drift"]["phase"] == "watching"
    drift_keeper.ask_to_learn(tmp_path)
    end = time.monotonic() + 30
    while watch.status()[""]["drift"]["phase"] != "learning":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not (tmp_path / "watch" / drift_keeper.LEARN).exists()
    watch.close()


def test_a_damaged_state_is_kept_aside_and_told(tmp_path: Path) -> None:
    bundles = {"": write_tiny_bundle(tmp_path / "a.flowedge")}
    first = Watch(WatchSettings(), tmp_path, bundles)
    first.seen(_record(), _picture(0))
    first.close()
    (file,) = (tmp_path / "watch").glob("*.json")
    file.write_bytes(file.read_bytes()[:-20])
    second = Watch(WatchSettings(), tmp_path, bundles)
    (event,) = second.seen(_record(1), _picture(1))
    assert (event.kind, event.level) == ("watch_state_lost", "warning")
    second.close()
    assert list((tmp_path / "watch").glob("*.damaged"))


def test_what_was_not_inspected_is_not_watched_and_rejected_frames_have_no_score(tmp_path: Path) -> None:
    watch = DriftWatch(_settings(learn=50), Reference(), rng=random.Random(0))
    for number in range(50):
        watch.seen(_record(number), _picture(number))
    watched = watch.state.watched
    watch.seen(_record(50, verdict="not_inspected", signal="nok", score=None), _picture(50))
    assert watched["brightness"].test.values == watched["score"].test.values == 0
    watch.seen(_record(51, verdict="anomalous", signal="nok"), _picture(51))
    assert (watched["brightness"].test.values, watched["score"].test.values) == (1, 0)


def test_the_quantities_of_a_picture_are_what_they_are_called() -> None:
    picture = np.full((300, 300, 3), 100, np.uint8)
    picture[:100, 200:] = 190
    values = dict(zip(PICTURE, picture_values(frame_statistics(picture)), strict=True))
    assert values["brightness"] == pytest.approx(picture.mean(), abs=1)
    assert values["contrast"] == pytest.approx(picture.std(), abs=1)
    assert values["layout 1-3"] == pytest.approx(1.9 / 1.1, abs=0.02)
    assert values["layout 3-1"] == pytest.approx(1 / 1.1, abs=0.02)
    dimmed = dict(zip(PICTURE, picture_values(frame_statistics(picture // 2)), strict=True))
    assert dimmed["layout 1-3"] == pytest.approx(values["layout 1-3"], abs=0.01)
    assert words_for("layout 1-3") == "brightness of the top right ninth relative to the picture"


def test_a_calibration_leaves_its_values_in_the_bundle(tmp_path: Path) -> None:
    images = []
    for number in range(40):
        images.append(tmp_path / f"{number:02}.png")
        cv2.imwrite(str(images[-1]), _picture(number))
    bundle = write_tiny_bundle(tmp_path / "a.flowedge")
    request = ThresholdRequest(method="quantile", image=0.9, pixel=0.9)
    done = calibrate_bundle(bundle, images, request=request).bundle
    limit = done.manifest.graph("fp32").thresholds.image
    assert limit is not None
    with Detector(done, open_engine(None, done, "fp32")) as detector:
        expected = sorted(detector(path).score for path in images)
    found = reference_of(done, "fp32", accepted_below=limit.value)
    kept = sorted(found.values["score"])
    assert kept == pytest.approx(expected[: len(kept)], rel=1e-5)
    assert kept[-1] <= limit.value < expected[len(kept)] + 1e-5
    assert 30 <= len(found.values["score"]) < 40
    statistics = np.array([frame_statistics(_picture(number)) for number in range(40)])
    for name, column in zip(PICTURE, picture_values(statistics).T, strict=True):
        assert found.values[name] == pytest.approx(column.tolist(), rel=1e-4)
    assert "score" not in reference_of(done, "fp32", whole_frames=False).values
    assert reference_of(bundle, "fp32").problem == "the bundle was not calibrated"


def test_a_state_of_other_quantities_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        DriftState(basis="", compare_with="line", spacing=1, learned=[("", [1.0])])
