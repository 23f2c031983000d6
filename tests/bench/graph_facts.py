"""What an ONNX file costs: its nodes, its bytes, its parameters, and the multiply-accumulates of one image."""

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


def multiply_accumulates(path: Path) -> int:
    """Of all convolutions and matrix products, for one image.

    Raises:
        ValueError: A shape cannot be inferred.
    """
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = 1
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            per_output = math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            per_output = shapes[node.input[0]][-2 if transposed else -1]
        else:
            continue
        outputs = math.prod(shapes.get(node.output[0], (0,)))
        if not outputs:
            raise ValueError(f"{path}: the shape of {node.output[0]} is not known")
        total += per_output * outputs
    return total
