"""Build and run a graph on TensorRT for RTX, which builds without a GPU and compiles its kernels when it starts."""

from __future__ import annotations

import numpy as np
import tensorrt_rtx as trt
from numpy.typing import NDArray

from flowedge.runtime.engines import nvidia, nvidia_build
from flowedge.runtime.opening.engine_contract import Building, Built, EngineSpec, Opening
from flowedge.runtime.protocols import Engine


def load(opening: Opening) -> Engine:
    """Load the engine that was built for this graph, with ``nvidia.load``."""
    return nvidia.load(trt, opening)


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try the engine with ``nvidia_build.probe``."""
    return nvidia_build.probe(trt, spec, graph, x)


def build(building: Building) -> Built:
    """Build the graph's engine for every device that it fits, with ``nvidia_build.build``."""
    return nvidia_build.build(trt, building)
