"""Try the engines on this machine with a graph of one addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.opening.engine import engine_module, engines_in_order, is_installed, library_version
from flowedge.runtime.opening.engine_contract import EngineSpec

# A whole ONNX model in 61 bytes, so that trying an engine needs neither a file nor the onnx package:
# y = x + x, float32 [3], opset 17.
PROBE_GRAPH: Final = (
    b"\x08\x08"  # ir_version 8
    b"\x42\x02\x10\x11"  # opset_import: version 17
    b"\x3a\x35"  # graph
    b"\x0a\x0e\x0a\x01x\x0a\x01x\x12\x01y\x22\x03Add"  # node: Add(x, x) -> y
    b"\x12\x01g"  # name
    b"\x5a\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x03"  # input x: float32 [3]
    b"\x62\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x03"  # output y: float32 [3]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The status of one engine on this machine.

    Attributes:
        spec: The engine.
        installed: True where the engine's package is there.
        version: The version of the package. The version is None where the package cannot be imported.
        works: True where the engine ran a small graph and the answer was right.
        problem: The reason why the engine does not work, and the next step. The text is empty where the engine works.
    """

    spec: EngineSpec
    installed: bool
    version: str | None
    works: bool
    problem: str


def available_engines() -> tuple[EngineStatus, ...]:
    """Try every engine of the table on a graph of one addition, in their order."""
    return tuple(_status(spec) for spec in engines_in_order())


def _status(spec: EngineSpec) -> EngineStatus:
    version: str | None = None
    problem = ""
    x = np.array([1.0, -2.0, 0.5], dtype=np.float32)
    try:
        module = engine_module(spec)
        version = library_version(spec)
        answer = module.probe(spec, PROBE_GRAPH, x)
        if not np.array_equal(answer, x + x):
            problem = f"{spec.name} computed {answer} for {x + x}. Reinstall {spec.needs}."
    except EngineUnavailableError as error:
        problem = str(error)
    return EngineStatus(
        spec=spec, installed=is_installed(spec), version=version, works=not problem, problem=problem
    )
