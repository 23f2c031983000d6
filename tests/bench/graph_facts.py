"""Count the nodes, the bytes and the parameters of an ONNX file."""

from __future__ import annotations

import math
from pathlib import Path

import onnx


def node_count(path: Path) -> int:
    """Count the nodes of the main graph, constants included."""
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def file_mb(path: Path) -> float:
    """Return the size of the graph's file and of its file of weights, in 10^6 bytes."""
    parts = [path, path.with_name(f"{path.name}.data")]
    return sum(part.stat().st_size for part in parts if part.exists()) / 1e6


def parameter_count(path: Path) -> int:
    """Count the floating-point numbers that the graph stores."""
    graph = onnx.load(str(path), load_external_data=False).graph
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in floats)
