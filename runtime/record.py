"""Define the record of one inspection, and the verdicts."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from flowedge.runtime.regions import Region

Verdict: TypeAlias = Literal["ok", "anomalous", "unknown", "not_inspected"]
"""``unknown``: no threshold was set. ``not_inspected``: the answer is not finite, or the frame is unlike the good
frames of the calibration. Only ``ok`` is a reason to let a part pass."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one inspected frame, which is one line of a report.

    Attributes:
        image: The name of the frame. For an image file the name is the path as it was found.
        verdict: The verdict, which is ``not_inspected`` also when the frame could not be read.
        score: The image score. A frame that was not inspected has no score.
        threshold: The image threshold, where it decides the verdict.
        log_nfa: The image's lowest log10 number of false alarms, where it decides the verdict.
        log_nfa_limit: The limit of ``log_nfa``. An image below the limit is anomalous.
        regions: The regions of anomalous pixels, in pixels of the frame, surest first.
        anomalous_share: The share of the frame's pixels that are anomalous, 0..1. The share is None where no limit
            decides on pixels.
        latency_ms: The time of preprocessing, inference and decision, without reading the file.
        precision: The precision of the graph.
        engine: The name of the engine that computed.
        engine_reason: The reason why this engine computed.
        overlay: The file of the heatmap, where one was written.
        mask: The file of the mask, where one was written.
        problem: The reason why the frame was not inspected, or why its pictures could not be written. The reason
            is empty where there is no problem.
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
