"""The loop of a station gives each captured frame exactly one record, whatever fails on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowedge.bundle import Bundle
from flowedge.errors import EngineUnavailableError, SourceError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.station.hand_over import FrameQueue
from flowedge.runtime.station.judges import Judge
from flowedge.runtime.station.loop import Loop
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.settings import ProductSettings
from flowedge.runtime.station.work import EndOfSource, Work
from support.station_parts import FrameList, Notes, ScriptedEngine, frame, judge_on, loop_of
from support.tiny_bundle import write_tiny_bundle
from support.waiting import wait_until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose threshold of the score is 2."""
    limit = Threshold(value=2.0, method="manual")
    return write_tiny_bundle(
        tmp_path_factory.mktemp("loop") / "tiny.flowedge", thresholds=Thresholds(image=limit, pixel=limit)
    )


def run(loop: Loop) -> None:
    """Run a loop until its source has ended and everything is written."""
    loop.start()
    finish(loop)


def finish(loop: Loop) -> None:
    wait_until(lambda: loop.has_ended)
    loop.stop()
    assert loop.join(20)


class _Failing:
    """Fails where its turn has come, by the numbers of its calls."""

    def __init__(self, *at: int, error: Exception | None = None) -> None:
        self.at, self.calls = at, 0
        self.error = error or EngineUnavailableError("out of memory")

    def __call__(self) -> None:
        self.calls += 1
        if self.calls in self.at:
            raise self.error


def test_each_frame_gets_one_record_in_order(bundle: Bundle) -> None:
    notes = Notes()
    engine = ScriptedEngine(bundle, score=1.0)
    run(loop_of(FrameList([frame(n) for n in range(30)]), lambda *_: judge_on(bundle, engine), notes))
    assert [record.source_id for record in notes.records] == [f"frame-{n}" for n in range(30)]
    assert notes.published == list(range(1, 31))
    assert {(record.verdict, record.signal) for record in notes.records} == {("ok", "ok")}
    assert engine.runs == 30
    assert notes.records[0].stages_ms.keys() == {"capture", "wait", "prepare", "infer", "decide", "total"}
    assert notes.records[0].threshold == 2.0


def test_what_cannot_be_judged_is_not_inspected(bundle: Bundle) -> None:
    notes = Notes()
    grey = frame(3)
    object.__setattr__(grey, "pixels", grey.pixels[..., :2])
    source = FrameList([frame(1, problem="the file is damaged"), frame(2), grey, frame(4)])
    loop = loop_of(
        source,
        lambda *_: judge_on(bundle, ScriptedEngine(bundle, score=1.0)),
        notes,
        check=lambda work: "the camera is frozen" if work.frame.id == "frame-2" else "",
    )
    run(loop)
    assert [record.verdict for record in notes.records] == ["not_inspected"] * 3 + ["ok"]
    assert [record.signal for record in notes.records] == ["nok"] * 3 + ["ok"]
    assert notes.records[0].problem == "the file is damaged"
    assert notes.records[1].problem == "the camera is frozen"
    assert "3" in notes.records[2].problem  # the number of channels that is needed
    assert notes.records[0].score is None


def test_an_answer_that_is_not_finite_is_not_inspected(bundle: Bundle) -> None:
    notes = Notes()
    engine = ScriptedEngine(bundle, score=float("nan"))
    run(loop_of(FrameList([frame(1)]), lambda *_: judge_on(bundle, engine), notes))
    assert (notes.records[0].verdict, notes.records[0].signal) == ("not_inspected", "nok")
    assert "not finite" in notes.records[0].problem


def test_a_bug_in_a_stage_takes_one_frame_and_not_the_station(bundle: Bundle) -> None:
    def check(work: object) -> str:
        raise KeyError("bug")

    notes = Notes()
    judge = judge_on(bundle, ScriptedEngine(bundle))
    run(loop_of(FrameList([frame(1), frame(2)]), lambda *_: judge, notes, check=check))
    assert [record.problem for record in notes.records] == ["prepare failed: 'bug'"] * 2


def test_an_engine_that_fails_is_opened_again_and_then_replaced(bundle: Bundle) -> None:
    notes, opened, fails = Notes(), [], _Failing(2, 4)

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        made = ScriptedEngine(bundle, fails if engine == "first" else lambda: None, score=1.0)
        opened.append((engine, made))
        return judge_on(bundle, made, name=str(engine))

    run(loop_of(FrameList([frame(n) for n in range(1, 7)]), open_judge, notes))
    assert [name for name, _ in opened] == ["first", "first", "second"]
    assert [one.is_closed for _, one in opened] == [True, True, False]
    assert notes.kinds == ["engine_failed", "engine_reopened", "engine_failed", "engine_replaced"]
    assert [record.verdict for record in notes.records] == [
        "ok",
        "not_inspected",
        "ok",
        "not_inspected",
        "ok",
        "ok",
    ]
    assert "out of memory" in notes.records[1].problem
    assert [record.engine for record in notes.records] == ["first"] * 4 + ["second"] * 2
    assert notes.events[-1].data == {"engine": "second", "before": "first"}


def test_any_error_of_an_engine_counts_and_a_rare_one_replaces_nothing(bundle: Bundle) -> None:
    notes, fails = Notes(), _Failing(2, 150, error=RuntimeError("a driver's own error"))
    opened: list[str | None] = []

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        opened.append(engine)
        return judge_on(bundle, ScriptedEngine(bundle, fails, score=1.0))

    run(loop_of(FrameList([frame(n) for n in range(160)]), open_judge, notes))
    assert opened == ["first", "first", "first"]
    assert [record.number for record in notes.records if record.verdict != "ok"] == [2, 150]


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine have four lanes for inferences of one thread."""
    monkeypatch.setattr("flowedge.runtime.lanes.fast_cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
def test_frames_that_are_judged_at_once_keep_their_order(bundle: Bundle) -> None:
    together = threading.Barrier(4, timeout=20)

    def wait_for_others() -> None:
        together.wait()

    notes, engine = Notes(), ScriptedEngine(bundle, wait_for_others, score=1.0)
    frames = [frame(n, problem="damaged" if n % 5 == 0 else "") for n in range(15)]
    run(loop_of(FrameList(frames), lambda *_: judge_on(bundle, engine, threads=1), notes))
    assert [record.source_id for record in notes.records] == [f"frame-{n}" for n in range(15)]
    assert [record.number for record in notes.records if record.verdict != "ok"] == [1, 6, 11]
    assert engine.runs == 12


@pytest.mark.usefixtures("four_cores")
def test_an_engine_that_fails_on_several_frames_at_once_is_replaced_once(bundle: Bundle) -> None:
    together = threading.Barrier(4, timeout=20)
    notes = Notes()
    opened: list[ScriptedEngine] = []

    def fail() -> None:
        if opened[0].runs <= 4:
            together.wait()
        raise EngineUnavailableError("the device is gone")

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        before = fail if not opened else lambda: None
        opened.append(ScriptedEngine(bundle, before, score=1.0))
        return judge_on(bundle, opened[-1], name=str(engine), threads=1)

    run(loop_of(FrameList([frame(n) for n in range(12)]), open_judge, notes))
    assert notes.kinds == ["engine_failed", "engine_reopened"]
    assert [one.is_closed for one in opened] == [True, False]
    # A fifth frame may already have waited for a lane, and was then meant for the engine that failed.
    lost = sum(record.verdict == "not_inspected" for record in notes.records)
    assert lost in (4, 5)
    assert [record.verdict for record in notes.records[lost:]] == ["ok"] * (12 - lost)


def test_an_engine_that_fails_is_replaced_although_no_further_frame_comes(bundle: Bundle) -> None:
    notes, fails = Notes(), _Failing(1)
    source = FrameList([frame(1), lambda: wait_until(lambda: "engine_reopened" in notes.kinds)])
    run(loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle, fails, score=1.0)), notes))
    assert notes.kinds == ["engine_failed", "engine_reopened"]


def test_without_any_engine_nothing_is_ok_and_the_station_goes_on(bundle: Bundle) -> None:
    notes, fails = Notes(), _Failing(1)
    opened: list[str | None] = []

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        opened.append(engine)
        if len(opened) > 1:
            raise EngineUnavailableError("no device")
        return judge_on(bundle, ScriptedEngine(bundle, fails))

    run(loop_of(FrameList([frame(n) for n in range(5)]), open_judge, notes))
    assert {record.verdict for record in notes.records} == {"not_inspected"}
    assert len(notes.records) == 5
    assert notes.kinds == ["engine_failed", "engine_lost"]
    assert "no device" in notes.events[-1].text


def test_an_engine_that_was_lost_comes_back(bundle: Bundle) -> None:
    notes, fails = Notes(), _Failing(1)
    now = [0.0]
    opened: list[str | None] = []

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        opened.append(engine)
        if 1 < len(opened) < 4:
            raise EngineUnavailableError("no device")
        return judge_on(bundle, ScriptedEngine(bundle, fails, score=1.0), name=str(engine))

    def later() -> None:
        wait_until(lambda: "engine_lost" in notes.kinds)
        now[0] += 10

    def wait_for_second() -> None:
        wait_until(lambda: len(notes.records) == 2)

    source = FrameList([frame(1), later, frame(2), wait_for_second, frame(3)])
    loop = loop_of(source, open_judge, notes, clock=lambda: now[0])
    run(loop)
    assert [record.verdict for record in notes.records] == ["not_inspected", "ok", "ok"]
    assert notes.kinds == ["engine_failed", "engine_lost", "engine_replaced"]


def test_a_full_queue_drops_the_oldest_and_the_next_record_counts_it(bundle: Bundle) -> None:
    notes = Notes()
    begun, go = threading.Event(), threading.Event()

    def wait_for_all() -> None:
        begun.set()
        assert go.wait(20)

    source = FrameList([frame(1), lambda: begun.wait(20), *(frame(n) for n in range(2, 12)), go.set])
    engine = ScriptedEngine(bundle, wait_for_all, score=1.0)
    loop = loop_of(source, lambda *_: judge_on(bundle, engine), notes, queue=2, when_full="drop_oldest")
    run(loop)
    assert notes.records[0].source_id == "frame-1"
    assert notes.records[-1].source_id == "frame-11"
    assert len(notes.records) + sum(record.dropped_before for record in notes.records) == 11
    assert loop.dropped == 11 - len(notes.records) > 0
    assert "dropped" in notes.kinds


def test_a_dropped_frame_of_a_known_part_has_a_record_of_its_own(bundle: Bundle) -> None:
    notes = Notes()
    begun, go = threading.Event(), threading.Event()

    def wait_for_all() -> None:
        begun.set()
        assert go.wait(20)

    frames = [frame(n, part=f"P{n}") for n in range(2, 12)]
    source = FrameList([frame(1, part="P1"), lambda: begun.wait(20), *frames, go.set])
    engine = ScriptedEngine(bundle, wait_for_all, score=1.0)
    run(loop_of(source, lambda *_: judge_on(bundle, engine), notes, queue=2, when_full="drop_oldest"))
    assert [record.part for record in notes.records] == [f"P{n}" for n in range(1, 12)]
    dropped = [record for record in notes.records if record.verdict != "ok"]
    assert dropped
    assert {record.signal for record in dropped} == {"nok"}
    assert {record.problem for record in dropped} == {
        "the frame was dropped, since the line was faster than the engine"
    }


def test_a_dropped_frame_of_a_known_part_frees_its_pixels() -> None:
    queue = FrameQueue(1)
    for number in (1, 2):
        queue.put(Work(frame=frame(number, part=f"P{number}"), begun_ns=1))
    dropped, kept = queue.get(), queue.get()
    assert isinstance(dropped, Work)
    assert isinstance(kept, Work)
    assert (dropped.frame.part, dropped.frame.pixels.size, dropped.frame.pixels.base) == ("P1", 0, None)
    assert kept.frame.pixels.size


def test_no_frame_gives_way_to_the_mark_of_the_end() -> None:
    queue = FrameQueue(2)
    for number in (1, 2):
        queue.put(Work(frame=frame(number), begun_ns=1))
    queue.put(EndOfSource())
    assert (queue.dropped, len(queue)) == (0, 3)


def test_a_frame_that_waits_for_room_when_the_station_stops_gets_its_record(bundle: Bundle) -> None:
    notes = Notes()
    go = threading.Event()

    def wait() -> None:
        assert go.wait(20)

    source = FrameList([frame(n) for n in range(50)])
    engine = ScriptedEngine(bundle, wait, score=1.0)
    loop = loop_of(source, lambda *_: judge_on(bundle, engine), notes, queue=1)
    loop.start()
    # One frame is with the engine, the queues hold some more, and the last one that was taken waits for room.
    taken = -1
    while taken != source.taken:
        taken = source.taken
        time.sleep(0.2)
    stopping = threading.Thread(target=loop.stop)
    stopping.start()
    wait_until(lambda: loop._stop.is_set())
    go.set()
    stopping.join(20)
    assert loop.join(20)
    assert [record.source_id for record in notes.records] == [f"frame-{n}" for n in range(source.taken)]
    assert source.taken < 50


def test_the_record_of_a_frame_does_not_wait_until_a_failed_engine_was_replaced(bundle: Bundle) -> None:
    notes, opening, fails = Notes(), threading.Event(), _Failing(1)
    engines = iter([ScriptedEngine(bundle, fails), ScriptedEngine(bundle)])

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        assert fails.calls == 0 or opening.wait(20)
        return judge_on(bundle, next(engines))

    loop = loop_of(FrameList([frame(1)]), open_judge, notes)
    loop.start()
    wait_until(lambda: bool(notes.records))
    assert notes.records[0].signal == "nok"
    opening.set()
    finish(loop)
    assert notes.kinds == ["engine_failed", "engine_reopened"]


def test_with_block_nothing_is_dropped_however_slow_the_journal_is(bundle: Bundle) -> None:
    notes = Notes()
    source = FrameList([frame(n) for n in range(100)])
    go = threading.Event()
    append = notes.append

    def slow(records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        assert go.wait(20)
        return append(records, events)

    notes.append = slow  # type: ignore[method-assign]
    loop = loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes, queue=1)
    loop.start()
    time.sleep(0.3)
    assert not loop.has_ended
    assert source.taken < 100  # the queues are bounded, so the source waits
    go.set()
    finish(loop)
    assert [record.source_id for record in notes.records] == [f"frame-{n}" for n in range(100)]
    assert notes.commits < 100  # what has waited is committed together


def test_few_large_frames_wait_for_a_journal_without_a_disk(bundle: Bundle) -> None:
    notes = Notes()
    go, append = threading.Event(), notes.append

    def slow(records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        assert go.wait(30)
        return append(records, events)

    notes.append = slow  # type: ignore[method-assign]
    large = np.zeros((3000, 4000, 3), np.uint8)
    source = FrameList([replace(frame(n), pixels=large) for n in range(30)])
    loop = loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes, queue=1)
    loop.start()
    # All stages wait. Of small frames all would be taken.
    wait_until(lambda: loop.queues == {"prepare": 1, "infer": 2, "decide": 2, "write": 4})
    assert source.taken < 30
    go.set()
    finish(loop)
    assert len(notes.records) == 30


def test_a_late_verdict_is_a_fact_of_the_record_and_no_ok(bundle: Bundle) -> None:
    notes = Notes()
    old = frame(1)
    object.__setattr__(old, "monotonic_ns", 1)  # as old as the machine's start
    judge = judge_on(bundle, ScriptedEngine(bundle, score=1.0))
    run(loop_of(FrameList([old, frame(2)]), lambda *_: judge, notes, deadline_ms=60_000))
    assert [(record.late, record.verdict, record.signal) for record in notes.records] == [
        (True, "ok", "nok"),
        (False, "ok", "ok"),
    ]


def test_records_are_kept_until_the_journal_takes_them(bundle: Bundle) -> None:
    notes = Notes()
    append, fails = notes.append, _Failing(1, 2, error=OSError("disk full"))

    def failing(records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        fails()
        return append(records, events)

    notes.append = failing  # type: ignore[method-assign]
    run(
        loop_of(
            FrameList([frame(n) for n in range(3)]),
            lambda *_: judge_on(bundle, ScriptedEngine(bundle)),
            notes,
        )
    )
    assert [record.source_id for record in notes.records] == ["frame-0", "frame-1", "frame-2"]
    assert notes.published == [1, 2, 3]


def test_each_try_to_write_is_a_piece_of_work_so_that_a_full_disk_does_not_look_like_a_hang(
    bundle: Bundle,
) -> None:
    notes = Notes()
    append, fails = notes.append, _Failing(1, 2, error=OSError("disk full"))
    marks: list[str] = []

    def failing(records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        marks.append("try")
        fails()
        return append(records, events)

    @contextmanager
    def working(stage: str) -> Iterator[None]:
        marks.append(stage)
        try:
            yield
        finally:
            marks.append(f"{stage} is over")

    notes.append = failing  # type: ignore[method-assign]
    judge = judge_on(bundle, ScriptedEngine(bundle))
    run(loop_of(FrameList([frame(0)]), lambda *_: judge, notes, working=working))
    writing = [mark for mark in marks if mark == "try" or mark.startswith("write")]
    assert writing[:9] == ["write", "try", "write is over"] * 3


def test_a_source_that_raises_ends_the_loop_with_its_problem(bundle: Bundle) -> None:
    notes = Notes()

    def broken() -> None:
        raise SourceError("the camera is gone")

    loop = loop_of(FrameList([frame(1), broken]), lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes)
    run(loop)
    assert len(notes.records) == 1
    assert loop.source_problem == "the camera is gone"
    assert notes.kinds == ["source_failed"]


def test_stopping_judges_and_writes_what_was_captured(bundle: Bundle) -> None:
    notes = Notes()
    captured, go = threading.Event(), threading.Event()
    source = FrameList([frame(1), frame(2), captured.set, lambda: go.wait(20), frame(3)])
    loop = loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes)
    loop.start()
    assert captured.wait(20)
    loop.stop()
    go.set()
    assert loop.join(20)
    assert [record.source_id for record in notes.records] == ["frame-1", "frame-2"]


def test_the_part_chooses_the_product(bundle: Bundle) -> None:
    notes = Notes()
    products = (
        ProductSettings(name="bottle", bundle=Path("b"), parts="B-*"),
        ProductSettings(name="cable", bundle=Path("c"), parts="C-*"),
    )

    def open_judge(product: ProductSettings, engine: str | None) -> Judge:
        return judge_on(bundle, ScriptedEngine(bundle), product=product.name)

    source = FrameList([frame(1, part="C-1"), frame(2, part="B-1"), frame(3, part="X"), frame(4)])
    run(loop_of(source, open_judge, notes, products=products))
    assert [record.product for record in notes.records] == ["cable", "bottle", "", ""]
    assert [record.verdict for record in notes.records][2:] == ["not_inspected"] * 2
    assert "no product is for the part X" in notes.records[2].problem


def test_an_action_runs_between_two_frames(bundle: Bundle) -> None:
    notes, done = Notes(), threading.Event()
    source = FrameList([frame(1), lambda: done.wait(20), frame(2)])
    loop = loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes)
    loop.start()
    assert loop.between_frames(done.set)
    wait_until(lambda: loop.has_ended)
    assert done.is_set()
    assert len(notes.records) == 2
    # A station whose source has ended still takes a change, and still writes its events.
    done.clear()
    assert loop.between_frames(done.set)
    assert done.wait(20)
    loop.put_event(Event(kind="sink_down", level="alarm", text="the broker is gone"))
    wait_until(lambda: notes.kinds == ["sink_down"])
    finish(loop)


def test_a_record_that_cannot_be_stored_leaves_a_bare_one_and_takes_no_other_with_it(bundle: Bundle) -> None:
    notes = Notes()
    append = notes.append

    def choosy(records: Sequence[Record], events: Sequence[Event]) -> Sequence[Record]:
        if any(record.score is not None and record.source_id == "frame-2" for record in records):
            raise ValueError("this score is no JSON")
        return append(records, events)

    notes.append = choosy  # type: ignore[method-assign]
    judge = judge_on(bundle, ScriptedEngine(bundle, score=1.0))
    run(loop_of(FrameList([frame(n) for n in range(5)]), lambda *_: judge, notes))
    assert [record.source_id for record in notes.records] == [f"frame-{n}" for n in range(5)]
    assert [record.verdict for record in notes.records] == ["ok", "ok", "not_inspected", "ok", "ok"]
    assert notes.records[2].problem == "the record could not be stored: this score is no JSON"


def test_a_source_that_never_comes_back_does_not_hold_up_the_end(bundle: Bundle) -> None:
    notes, captured, never = Notes(), threading.Event(), threading.Event()
    source = FrameList([frame(1), captured.set, lambda: never.wait(60)])
    loop = loop_of(source, lambda *_: judge_on(bundle, ScriptedEngine(bundle)), notes)
    loop.start()
    assert captured.wait(20)
    loop.stop()
    assert loop.join(20)
    assert [record.source_id for record in notes.records] == ["frame-1"]
    never.set()


def test_a_change_that_fails_leaves_the_detectors_as_they_are(bundle: Bundle) -> None:
    def broken(judge: Judge) -> Judge:
        raise KeyError("bug")

    notes = Notes()
    loop = loop_of(
        FrameList([frame(1)]), lambda *_: judge_on(bundle, ScriptedEngine(bundle, score=1.0)), notes
    )
    loop._parts.judges.request(broken)
    run(loop)
    assert [record.verdict for record in notes.records] == ["ok"]
    assert [(event.kind, event.level) for event in notes.events] == [("change_failed", "alarm")]
