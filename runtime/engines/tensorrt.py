"""Build and run a graph on TensorRT 8 (float32 only), 10 or 11."""

from __future__ import annotations

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from flowedge.runtime.engines import nvidia, nvidia_build
from flowedge.runtime.opening.engine_contract import Building, Built, EngineSpec, Opening
from flowedge.runtime.protocols import Engine


def load(opening: Opening) -> Engine:
    """Load the engine that was built for this graph and device, with ``nvidia.load``."""
    return nvidia.load(trt, opening)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try the engine with ``nvidia_build.probe``."""
    return nvidia_build.probe(trt, spec, graph, x)


def build(building: Building) -> Built:
    """Build the graph's engine for this device, with ``nvidia_build.build``."""
    return nvidia_build.build(trt, building)
