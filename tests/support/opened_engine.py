"""Present an engine of a test as if it had been opened by its name."""

from __future__ import annotations

from flowedge.runtime.opening.engine_contract import EngineSpec, Opened
from flowedge.runtime.protocols import Engine


def opened(engine: Engine, precision: str = "fp32") -> Opened:
    """Give an engine of a test the facts that opening it by name would give."""
    spec = EngineSpec(name=engine.name, module="", needs="", extra="", device="cpu", order=None)
    return Opened(engine=engine, spec=spec, precision=precision, reason="named")
