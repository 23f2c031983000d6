"""What an ONNX file costs: its nodes, its bytes and its parameters."""

from __future__ import annotations

import math
from pathlib import Path

import onnx


def node_count(path: Path) -> int:
    """Nodes of the main graph, constants included."""
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def file_mb(path: Path) -> float:
    """The graph's file and the one that holds its weights, in 10^6 bytes."""
    parts = [path, path.with_name(f"{path.name}.data")]
    return sum(part.stat().st_size for part in parts if part.exists()) / 1e6


def parameter_count(path: Path) -> int:
    """Floating-point numbers that the graph stores."""
    graph = onnx.load(str(path), load_external_data=False).graph
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in floats)
