"""The hand-over from the line to its watchers is bounded, counts everything and keeps what people look for."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import numpy as np
import pytest

from flowedge.runtime.result import Result
from flowedge.runtime.station.live import BUCKETS_S, Live
from flowedge.runtime.station.record import Record
from support.made_result import made_result


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(number: int, **fields: Any) -> Record:
    facts: dict[str, Any] = {"verdict": "ok", "signal": "ok", "reason": ""}
    return Record(
        number=number,
        station="line 3",
        run="r",
        time=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        monotonic_ns=0,
        source="camera",
        source_id=str(number),
        **(facts | fields),
    )


def result_of(pixels: int) -> Result:
    return made_result(np.zeros((pixels, 1, 3), np.uint8), np.zeros((1, 1)))


def test_the_newest_results_are_kept_up_to_a_number_of_bytes_and_rejected_ones_longer() -> None:
    live = Live(result_bytes=10 * 3 * 100)
    live.publish(record(1, verdict="anomalous", signal="nok"), result_of(100))
    for number in range(2, 40):
        live.publish(record(number), result_of(100))
    assert [number for number in range(1, 40) if live.seen(number)] == [1, *range(31, 40)]
    live.publish(record(40), result_of(10_000))
    newest = live.newest
    assert newest is not None
    assert newest.record.number == 40
    assert [number for number in range(1, 41) if live.seen(number)] == [1, 40]


def test_everything_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    live = Live(clock=clock)
    for number in range(1, 121):
        clock.now += 1
        is_nok = number % 10 == 0
        facts = {"verdict": "anomalous", "signal": "nok"} if is_nok else {}
        live.publish(record(number, dropped_before=int(is_nok), late=is_nok, **facts), None)
    assert live.counts.records == {("ok", "ok"): 108, ("anomalous", "nok"): 12}
    assert (live.counts.total, live.counts.dropped, live.counts.late) == (120, 12, 12)
    assert live.counts.of_signal("nok") == 12
    assert live.rates == (60.0, 60, 6, 6)
    assert live.uptime_s == 120
    clock.now += 61
    assert live.rates == (60.0, 0, 0, 0)
    newest = live.newest
    assert newest is not None
    assert live.age_s(newest) == 61


def test_the_times_of_stages_are_in_buckets_and_in_quantiles() -> None:
    live = Live()
    for milliseconds in range(1, 2001):
        live.publish(record(milliseconds, stages_ms={"infer": milliseconds}), None)
    times = live.stages["infer"]
    assert sum(times.buckets) == 2000
    assert times.buckets[0] == 1  # 1 ms and no more
    assert times.buckets[BUCKETS_S.index(1.0)] == 500
    assert times.seconds == pytest.approx(2001)
    assert (len(times.recent_ms), min(times.recent_ms)) == (1000, 1001)
    assert times.quantile_ms(0.5) == 1501
    assert times.quantile_ms(0.99) == 1991


def test_no_source_of_records_makes_the_stages_grow_without_end() -> None:
    live = Live()
    for number in range(1000):
        live.publish(record(number, stages_ms={f"stage {number}": 1.0}), None)
    assert len(live.stages) == 16


def test_a_part_remembers_when_its_state_changed() -> None:
    live = Live()
    live.tell("mqtt", "ok", "connected", kind="sink")
    first = live.parts[0]
    live.tell("mqtt", "ok", "still connected", kind="sink", value=3)
    assert live.parts[0].since == first.since
    assert (live.parts[0].text, live.parts[0].value) == ("still connected", 3)
    live.tell("camera", "down", "no frame for 3 s", kind="source", is_needed=True)
    assert [one.name for one in live.parts] == ["mqtt", "camera"]


def test_a_loop_that_has_not_begun_has_no_age() -> None:
    clock = Clock()
    live = Live(clock=clock)
    assert live.beat_age_s is None
    live.beat()
    clock.now += 5
    assert live.beat_age_s == 5


def test_threads_publish_and_read_at_once() -> None:
    live = Live()
    problems: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(300):
                assert live.counts.total >= 0
                _ = (live.rates, live.stages, live.parts, live.newest, live.seen(5))
        except BaseException as error:
            problems.append(error)

    def write() -> None:
        for number in range(300):
            live.publish(record(number, stages_ms={"a": 1.0}), None)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write) for _ in range(3)]
    for one in writers:
        one.start()
    for one in (*writers, reader):
        one.join()
    assert not problems
    assert live.counts.total == 900
