"""Half precision by types: the same graph with its backbone and its subnets in float16.

What runs is what the ONNX says, so one file serves strongly typed TensorRT, TensorRT for RTX and ONNX Runtime. The
coupling's ``x exp(g) + t``, the sums of squares, the likelihoods and all aggregation stay in float32: the worst
case of eight couplings is 4e6, and a sum over 2048 channels has a spacing of 2 in float16.

This module edits graphs, so unlike the rest of ``flowedge.calibration`` it needs the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from flowedge.errors import ExportError

HALF: Final = ("backbone/*", "flow/steps/*/subnet/*")
_NORMS: Final = "flow/steps/*/norm/*"  # sums of squares over channels
_FLOAT_OPS: Final = frozenset({"LayerNormalization"})
_LARGEST: Final = 65504.0
_FLOAT_ONLY_INPUTS: Final = {"Resize": (1, 2)}  # roi and scales are float32 whatever the data is
_EXTERNAL_ABOVE: Final = 1_500_000_000


def write_fp16(source: Path, target: Path, *, half: tuple[str, ...] = HALF) -> list[str]:
    """Write ``target``: the graph of ``source`` with the nodes whose names match ``half`` in float16.

    Inputs and outputs keep their types. Layer norms stay in float32, as TensorRT advises, and so does a node with a
    weight beyond float16's range.

    Returns:
        The names of the nodes that match ``half`` but had to stay in float32.

    Raises:
        ExportError: No node matches, or the result is not a valid graph.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    graph = model.graph
    wanted = {node.name for node in graph.node if any(fnmatchcase(node.name, pattern) for pattern in half)}
    if not wanted:
        raise ExportError(
            f"no node of {source.name} is named like {', '.join(half)}: export the bundle again"
        )
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = sorted(node.name for node in graph.node if node.name in wanted and _stays(node, weights))
    _retype(graph, wanted - set(kept), weights)
    del graph.value_info[:]
    _save(model, target)
    return kept


def _retype(graph: onnx.GraphProto, half: set[str], weights: dict[str, onnx.TensorProto]) -> None:
    floats = set(_float_tensors(graph))
    made_half: set[str] = set()
    casts: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []
    used: set[str] = set()

    def cast(name: str, to: int) -> str:
        key = (name, to)
        if key not in casts:
            suffix = "fp16" if to == onnx.TensorProto.FLOAT16 else "fp32"
            casts[key] = f"{name}.{suffix}"
            nodes.append(
                onnx.helper.make_node("Cast", [name], [casts[key]], name=f"{name}/Cast_{suffix}", to=to)
            )
        return casts[key]

    for node in graph.node:
        in_half = node.name in half
        fixed = _FLOAT_ONLY_INPUTS.get(node.op_type, ())
        for place, name in enumerate(node.input):
            if name not in floats and name not in made_half:
                continue
            if in_half and place not in fixed:
                if name in weights:
                    node.input[place] = _half_weight(graph, weights, name)
                elif name not in made_half:
                    node.input[place] = cast(name, onnx.TensorProto.FLOAT16)
            elif name in made_half:
                node.input[place] = cast(name, onnx.TensorProto.FLOAT)
        nodes.append(node)
        used.update(node.input)
        if in_half:
            made_half.update(name for name in node.output if name in floats)
    for output in graph.output:
        if output.name in made_half:
            raise ExportError(
                f"the output {output.name} would change its type to float16: it must not match half"
            )
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    ordered = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(ordered, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(ordered)


def _half_weight(graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto], name: str) -> str:
    half = f"{name}.fp16"
    if half not in weights:
        values = numpy_helper.to_array(weights[name]).astype(np.float16)
        tensor = numpy_helper.from_array(values, half)
        graph.initializer.append(tensor)
        weights[half] = tensor
    return half


def _stays(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    return node.op_type in _FLOAT_OPS or fnmatchcase(node.name, _NORMS) or _too_large(node, weights)


def _too_large(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    arrays = (numpy_helper.to_array(weights[name]) for name in node.input if name in weights)
    return any(a.dtype == np.float32 and a.size and float(np.abs(a).max()) > _LARGEST for a in arrays)


def _float_tensors(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            yield value.name
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name


def _save(model: onnx.ModelProto, target: Path) -> None:
    large = model.ByteSize() > _EXTERNAL_ABOVE
    onnx.save(
        model, str(target), save_as_external_data=large, location=f"{target.name}.data" if large else None
    )
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the float16 graph is not valid: {error}") from error
