"""Make the record of one frame from the work on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from flowedge.manifest import Thresholds
from flowedge.runtime.record import Verdict
from flowedge.runtime.station.record import MOST_REGIONS, Record, recorded_region
from flowedge.runtime.station.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """Makes the records of one run of a station.

    Attributes:
        station: The name of the station.
        run: The name of the run.
        deadline_ms: The time in ms from capture to verdict, after which a verdict is late.
        clock: The monotonic clock in ns.
    """

    station: str
    run: str
    deadline_ms: float | None = None
    clock: Callable[[], int] = time.monotonic_ns

    def __call__(self, work: Work) -> Record:
        """Decide on the signal of a frame and make its record."""
        frame, judge, result = work.frame, work.judge, work.result
        verdict: Verdict = "not_inspected"
        problem, score, log_nfa = work.problem, None, None
        if result is not None and not problem:
            verdict, problem = result.verdict, result.problem
        if result is not None and verdict != "not_inspected":
            score, log_nfa = result.score, result.log_nfa
        late = self._is_late(work.begun_ns)
        threshold, log_nfa_limit = limits_of(judge.detector.thresholds) if judge else (None, None)
        is_ok = verdict == "ok" and not late
        regions = () if result is None or verdict == "not_inspected" else result.regions
        stages = {name: round(milliseconds, 3) for name, milliseconds in work.stages_ms.items()}
        return Record(
            station=self.station,
            run=self.run,
            time=frame.time,
            monotonic_ns=work.begun_ns,
            source=frame.source,
            source_id=frame.id,
            source_key=frame.version,
            part=frame.part,
            product=judge.product if judge else "",
            bundle_sha256=judge.bundle_sha256 if judge else "",
            engine=judge.detector.engine_name if judge else "",
            engine_version=judge.engine_version if judge else "",
            engine_reason=judge.detector.engine_reason if judge else "",
            precision=judge.detector.precision if judge else "",
            threshold=threshold,
            log_nfa_limit=log_nfa_limit,
            threshold_version=judge.threshold_version if judge else 0,
            score=score,
            log_nfa=log_nfa,
            verdict=verdict,
            signal="ok" if is_ok else "nok",
            reason="late" if late else problem or verdict,
            regions=tuple(
                recorded_region(one, length_px=0.0, mm_per_px=None) for one in regions[:MOST_REGIONS]
            ),
            regions_left_out=max(0, len(regions) - MOST_REGIONS),
            late=late,
            stages_ms=stages,
            dropped_before=work.dropped_before,
            problem=problem,
        )

    def stamp(self, record: Record) -> Record:
        """Return a record as it is at the moment of its commit: with its whole time, and perhaps late."""
        total_ms = round((self.clock() - record.monotonic_ns) / 1e6, 3)
        stages = {**record.stages_ms, "total": total_ms}
        if record.late or not self._is_late(record.monotonic_ns):
            return msgspec.structs.replace(record, stages_ms=stages)
        reason = f"late: the verdict came after its deadline ({record.reason})"
        return msgspec.structs.replace(record, stages_ms=stages, late=True, signal="nok", reason=reason)

    def _is_late(self, begun_ns: int) -> bool:
        return self.deadline_ms is not None and self.clock() - begun_ns > self.deadline_ms * 1e6


def limits_of(thresholds: Thresholds) -> tuple[float | None, float | None]:
    """Return the limits of the score and of log NFA, of which only the one that decides is set."""
    if thresholds.nfa is not None:
        return None, thresholds.nfa.log_nfa
    return None if thresholds.image is None else thresholds.image.value, None
