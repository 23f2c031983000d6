"""The record of one inspection: the line of a report."""

from __future__ import annotations

import msgspec

from flowedge.runtime.nfa import Region
from flowedge.runtime.result import Verdict


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One image's line in the report.

    Attributes:
        image: The file's path as it was found.
        verdict: ``not_inspected`` also when the file could not be read.
        score: None when there is none.
        threshold: The image threshold that the verdict follows, None when it follows none.
        log_nfa: The image's lowest log10 number of false alarms; None when that does not decide.
        log_nfa_limit: The limit that it was compared with; below is anomalous.
        regions: What was detected by it, in pixels of the frame, surest first.
        anomalous_share: The share of the frame's pixels that are anomalous, 0..1; None where nothing decides.
        latency_ms: Preprocessing, inference and decision; not reading the file.
        precision: What the graph computed in.
        engine: What computed it.
        engine_reason: Why that one.
        overlay: The heatmap's file, where one was written.
        mask: The mask's file, where one was written.
        problem: The reason why the image was not inspected, or why its pictures could not be written; else empty.
    """

    image: str
    verdict: Verdict
    score: float | None
    threshold: float | None
    log_nfa: float | None = None
    log_nfa_limit: float | None = None
    regions: tuple[Region, ...] = ()
    anomalous_share: float | None
    latency_ms: float | None
    precision: str
    engine: str
    engine_reason: str
    overlay: str | None = None
    mask: str | None = None
    problem: str = ""
