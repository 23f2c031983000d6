"""Make the record of one frame from the work on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from flowedge.manifest import Thresholds
from flowedge.runtime.record import Verdict
from flowedge.runtime.station.decision import Decision, FrameFacts
from flowedge.runtime.station.record import Record
from flowedge.runtime.station.work import Work


class Recorder:
    """Makes the records of one run of a station. One thread calls it, in the order of the frames."""

    def __init__(
        self,
        decision: Decision,
        *,
        station: str,
        run: str,
        deadline_ms: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Take the facts that all records share.

        Args:
            decision: Decides on the signal.
            station: The name of the station.
            run: The name of the run.
            deadline_ms: The time in ms from capture to verdict, after which a verdict is late.
            clock: The monotonic clock in ns.
        """
        self._decision = decision
        self._station, self._run = station, run
        self._deadline_ms = deadline_ms
        self._clock = clock

    def __call__(self, work: Work) -> Record:
        """Decide on the signal of a frame and make its record."""
        frame, judge, result = work.frame, work.judge, work.result
        verdict: Verdict = "not_inspected"
        problem, score, log_nfa = work.problem, None, None
        if result is not None and not problem:
            verdict, problem = result.verdict, result.problem
        if result is not None and verdict != "not_inspected":
            score, log_nfa = result.score, result.log_nfa
        product = judge.product if judge else ""
        late = self._is_late(work.begun_ns)
        outcome = self._decision(
            result, FrameFacts(source=frame.source, product=product, late=late, problem=problem)
        )
        detector = judge.detector if judge else None
        threshold, log_nfa_limit = limits_of(detector.thresholds) if detector else (None, None)
        return Record(
            station=self._station,
            run=self._run,
            time=frame.time,
            monotonic_ns=work.begun_ns,
            source=frame.source,
            source_id=frame.id,
            source_key=frame.version,
            part=frame.part,
            product=product,
            bundle_sha256=judge.bundle_sha256 if judge else "",
            engine=detector.engine_name if detector else "",
            engine_version=judge.engine_version if judge else "",
            engine_reason=detector.engine_reason if detector else "",
            precision=detector.precision if detector else "",
            threshold=threshold,
            log_nfa_limit=log_nfa_limit,
            threshold_version=judge.threshold_version if judge else 0,
            score=score,
            log_nfa=log_nfa,
            verdict=verdict,
            signal=outcome.signal,
            reason=outcome.reason,
            severity=outcome.severity,
            regions=outcome.regions,
            regions_left_out=outcome.regions_left_out,
            late=late,
            stages_ms={name: round(milliseconds, 3) for name, milliseconds in work.stages_ms.items()},
            dropped_before=work.dropped_before,
            problem=problem,
        )

    def stamp(self, record: Record) -> Record:
        """Return a record as it is at the moment of its commit: with its whole time, and perhaps late."""
        total_ms = round((self._clock() - record.monotonic_ns) / 1e6, 3)
        stages = {**record.stages_ms, "total": total_ms}
        if record.late or not self._is_late(record.monotonic_ns):
            return msgspec.structs.replace(record, stages_ms=stages)
        signal, reason = self._decision.late_answer(record.signal, record.reason)
        return msgspec.structs.replace(record, stages_ms=stages, late=True, signal=signal, reason=reason)

    def _is_late(self, begun_ns: int) -> bool:
        return self._deadline_ms is not None and self._clock() - begun_ns > self._deadline_ms * 1e6


def limits_of(thresholds: Thresholds) -> tuple[float | None, float | None]:
    """Return the limits of the score and of log NFA, of which only the one that decides is set."""
    if thresholds.nfa is not None:
        return None, thresholds.nfa.log_nfa
    return None if thresholds.image is None else thresholds.image.value, None
