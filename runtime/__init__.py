"""Run a bundle on a device, without torch. An engine's library is imported only when the engine is opened."""

from __future__ import annotations

from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.engine_contract import EngineSpec
from flowedge.runtime.opening.engine_status import EngineStatus, available_engines
from flowedge.runtime.opening.opening import open_engine
from flowedge.runtime.protocols import Engine
from flowedge.runtime.record import Verdict
from flowedge.runtime.result import Result, Timings

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
