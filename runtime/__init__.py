"""Run a bundle on a device. Never imports torch; imports an engine only when it is opened."""

from __future__ import annotations

from flowedge.runtime.detector import Detector, Result, Timings, Verdict
from flowedge.runtime.engine import (
    ENGINES,
    Engine,
    EngineSpec,
    EngineStatus,
    available_engines,
)
from flowedge.runtime.opening import open_engine
from flowedge.runtime.preprocess import Preprocessor

__all__ = [
    # inspecting frames
    "Detector",
    "Preprocessor",
    "Result",
    "Timings",
    "Verdict",
    # engines
    "ENGINES",
    "Engine",
    "EngineSpec",
    "EngineStatus",
    "available_engines",
    "open_engine",
]
