"""What an ONNX file costs: its nodes, its bytes, its parameters, and the multiply-accumulates of one image."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


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


def multiply_accumulates(path: Path) -> int:
    """Of all convolutions and matrix products, for one image, by the shapes that a run gives."""
    graph = onnx.load(str(path), load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    names = {name for node in products for name in (node.input[0], node.output[0])} - shapes.keys()
    shapes |= _shapes_in_a_run(path, names)
    total = 0
    for node in products:
        if node.op_type == "Conv":
            per_output = math.prod(shapes[node.input[1]][1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            per_output = shapes[node.input[0]][-2 if transposed else -1]
        total += per_output * math.prod(shapes[node.output[0]])
    return total


def _shapes_in_a_run(path: Path, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Of these tensors, for zeros at batch 1. ONNX's own inference gives up on a reshape by computed sizes."""
    model = onnx.load(str(path), load_external_data=False)
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in sorted(names) if n not in given
    )
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as file:  # beside the weights
        onnx.save(model, file.name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    feed = {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], np.float32)
        for value in session.get_inputs()
    }
    wanted = [value.name for value in session.get_outputs() if value.name in names]
    found = {name: array.shape for name, array in zip(wanted, session.run(wanted, feed), strict=True)}
    return found | {name: array.shape for name, array in feed.items()}
