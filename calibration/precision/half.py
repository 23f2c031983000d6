"""Convert the backbone and the subnets of a graph to float16 or bfloat16 by changing the types in the ONNX graph.

The types in the file say what each node computes in, so one file serves strongly typed TensorRT, TensorRT for RTX and
ONNX Runtime. The coupling's ``x exp(g) + t``, the sums of squares, the likelihoods and all aggregation stay in float32:
the worst case of eight couplings is 4e6, and a sum over 2048 channels has a spacing of 2 in float16. Layer norms stay
in float32 too, as TensorRT advises. So do nodes with a weight, or with a value on the images, that float16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from flowedge.calibration.precision.blocks import CONVERTIBLE
from flowedge.calibration.precision.ranges import TensorRange
from flowedge.errors import ExportError

HalfType: TypeAlias = Literal["fp16", "bf16"]

_NORMS: Final = "flow/steps/*/norm/*"  # The sums of squares over channels.
_STEPS: Final = "flow/steps/*"  # A layer norm's product and sum are among them.
_FLOAT_OPS: Final = frozenset({"LayerNormalization"})
_DIMS: Final = 3  # Channels, rows and columns.
_WORTH_A_CAST: Final = (
    4096  # The elements of a matrix from which on storing it in float16 saves enough memory.
)
_LARGEST: Final = 65504.0
_HEADROOM: Final = 4.0  # Other images may exceed the observed values by this factor.
_SMALLEST: Final = 2.0**-14  # Below this value float16 loses digits.
_FLOAT_ONLY_INPUTS: Final = {
    "Resize": (1, 2)
}  # The region and the scales are float32 for every type of data.
_BF16_OPSET: Final = 22  # The first opset with bfloat16 convolutions.
_TYPES: Final = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


def convertible_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the nodes that may compute in half precision by the families' rule."""
    return tuple(
        node.name
        for node in model.graph.node
        if any(fnmatchcase(node.name, pattern) for pattern in CONVERTIBLE)
        and not fnmatchcase(node.name, _NORMS)
        and node.op_type not in _FLOAT_OPS
    )


def nodes_kept_in_fp32(
    model: onnx.ModelProto, half: HalfType, ranges: Mapping[str, TensorRange] | None = None
) -> dict[str, str]:
    """Return the nodes whose values float16 cannot hold, so that they stay in float32, each with the reason.

    No node must stay for bfloat16, because bfloat16 has the range of float32.

    Args:
        model: The fp32 graph with its weights.
        half: The half precision.
        ranges: The values that the tensors took on images. Without ranges only the weights are checked.
    """
    if half == "bf16":
        return {}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    observed = ranges or {}
    found: dict[str, str] = {}
    wanted = set(convertible_nodes(model))
    for node in model.graph.node:
        if node.name not in wanted:
            continue
        for name in (*node.input, *node.output):
            reason = _why_not(name, weights, observed)
            if reason:
                found[node.name] = reason
                break
    return found


def _why_not(
    name: str, weights: Mapping[str, onnx.TensorProto], ranges: Mapping[str, TensorRange]
) -> str | None:
    """Return why a tensor does not fit float16, or None if it fits.

    1. A weight has known values, so its largest one decides.
    2. An observed tensor may take larger values on other images, so it needs headroom.
    3. A tensor that was not observed counts as one that fits.
    """
    if name in weights:
        if weights[name].data_type != onnx.TensorProto.FLOAT:
            return None
        values = numpy_helper.to_array(weights[name])
        largest = float(np.abs(values).max()) if values.size else 0.0
        if largest > _LARGEST:
            return f"a weight of {largest:.3g}"
        # A bias as small as that changes nothing in the sum that it is added to.
        if values.ndim > 1 and 0 < largest < _SMALLEST:
            return f"weights of at most {largest:.1e}"
        return None
    if name not in ranges:
        return None
    values_seen = ranges[name]
    largest = values_seen.largest_magnitude
    if values_seen.infinite or largest * _HEADROOM > _LARGEST:
        return f"{name} reached {largest:.3g}"
    if 0 < largest < _SMALLEST:
        return f"{name} stayed below {largest:.1e}"
    return None


def to_half(model: onnx.ModelProto, half: HalfType, *, keep: Collection[str]) -> None:
    """Convert a graph to half precision in place.

    Args:
        model: The graph with its weights and inferred shapes. The shapes tell the float tensors from the others.
        half: The half precision. bfloat16 lifts the graph to the first opset whose convolutions have this type.
        keep: Names of convertible nodes that stay in float32.

    Raises:
        ExportError: The graph has no convertible node, or an output of the graph would change its type.
    """
    nodes = convertible_nodes(model)
    if not nodes:
        raise ExportError(
            f"no node of the graph is named like {', '.join(CONVERTIBLE)}: export the bundle again"
        )
    if half == "bf16" and model.opset_import[0].version < _BF16_OPSET:
        model.CopyFrom(version_converter.convert_version(model, _BF16_OPSET))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    _retype(model.graph, set(nodes) - set(keep), weights, half)
    del model.graph.value_info[:]  # The inferred types are those of the graph before.


def store_in_half(model: onnx.ModelProto) -> None:
    """Store the large weights of float32 nodes in float16, in place. Engines widen them when they load the graph.

    No node computes in another type than before.

    Args:
        model: The graph with its weights and inferred shapes.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    _retype(model.graph, set(), weights, "fp16")


def _retype(
    graph: onnx.GraphProto, half: set[str], weights: dict[str, onnx.TensorProto], name_of_type: HalfType
) -> None:
    """Give some nodes inputs and outputs of half precision, and put a Cast where float32 meets half precision."""
    floats = set(_float_tensors(graph))
    made_half: set[str] = set()
    casts: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int) -> str:
        key = (name, to)
        if key not in casts:
            suffix = "fp32" if to == onnx.TensorProto.FLOAT else name_of_type
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
            # 1. A half-precision node reads half-precision weights and values.
            if in_half and place not in fixed:
                if name in weights:
                    node.input[place] = _half_weight(graph, weights, name, name_of_type)
                elif name not in made_half:
                    node.input[place] = cast(name, _TYPES[name_of_type])
            # 2. A float32 node reads what a half-precision node wrote.
            elif name in made_half:
                node.input[place] = cast(name, onnx.TensorProto.FLOAT)
            # 3. A float32 node reads a weight that is stored in float16.
            elif name in weights and _is_stored_in(name_of_type, node, weights[name]):
                stored = _half_weight(graph, weights, name, name_of_type)
                node.input[place] = cast(stored, onnx.TensorProto.FLOAT)
        nodes.append(node)
        if in_half:
            made_half.update(name for name in node.output if name in floats)
    for output in graph.output:
        if output.name in made_half:
            raise ExportError(
                f"the output {output.name} would change its type: a node of the backbone or of a subnet writes it"
            )
    # The float32 forms of converted weights have no reader any more.
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    # The nodes belong to the graph and vanish when its list is cleared, so they are copied first.
    ordered = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(ordered, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(ordered)


def emulate_half(model: onnx.ModelProto, half: HalfType, *, keep: Collection[str]) -> frozenset[str]:
    """Emulate half precision in place: round the values, but keep the float32 types that every engine runs.

    ONNX Runtime's CPU has no bfloat16 convolution. In a float16 graph it rounds the weights alone, so a value that
    overflows on a GPU does not overflow there. The emulation rounds every value that a converted node reads or writes.

    Args:
        model: The graph with its weights and inferred shapes.
        half: The half precision.
        keep: Names of convertible nodes that stay in float32.

    Returns:
        The tensors that converted nodes write. The rounded values of ``NAME`` are in the tensor ``NAME.rounded``.
    """
    graph = model.graph
    rounded = set(convertible_nodes(model)) - set(keep)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    floats = set(_float_tensors(graph))
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    written: set[str] = set()

    def round_tensor(name: str) -> str:
        if name in weights:
            if f"{name}.rounded" not in weights:
                values = _rounded(numpy_helper.to_array(weights[name]), half).astype(np.float32)
                weights[f"{name}.rounded"] = numpy_helper.from_array(values, f"{name}.rounded")
                graph.initializer.append(weights[f"{name}.rounded"])
        elif name not in done:
            done.add(name)
            for source, target, to in (
                (name, f"{name}.{half}", _TYPES[half]),
                (f"{name}.{half}", f"{name}.rounded", onnx.TensorProto.FLOAT),
            ):
                nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to))
        return f"{name}.rounded"

    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        fixed = _FLOAT_ONLY_INPUTS.get(node.op_type, ())
        for place, name in enumerate(node.input):
            is_stored = name in weights and _is_stored_in(half, node, weights[name])
            if (
                place not in fixed
                and name in floats
                and (node.name in rounded or name in written or is_stored)
            ):
                copy.input[place] = round_tensor(name)
        nodes.append(copy)
        if node.name in rounded:
            for name in node.output:
                if name in floats:
                    round_tensor(name)
                    written.add(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return frozenset(written)


def _is_stored_in(half: HalfType, node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    """Tell whether the weight of a node that computes in float32 is stored in float16.

    1. A large matrix is stored in float16 where float16 holds its values exactly.
    2. A weight with one number for every element of a level is, where its values are within float16's range.
    """
    if half != "fp16" or node.op_type not in ("MatMul", "Mul", "Add"):
        return False
    values = numpy_helper.to_array(weight)
    if node.op_type == "MatMul":
        with np.errstate(over="ignore"):  # A value beyond float16 becomes infinite and compares as different.
            return values.size >= _WORTH_A_CAST and bool((values.astype(np.float16) == values).all())
    return (
        fnmatchcase(node.name, _STEPS)
        and values.ndim >= _DIMS
        and min(values.shape[-_DIMS:]) > 1
        and float(np.abs(values).max()) <= _LARGEST
    )


def _half_weight(
    graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto], name: str, half: HalfType
) -> str:
    key = f"{name}.{half}"
    if key not in weights:
        values = numpy_helper.to_array(weights[name])
        tensor = numpy_helper.from_array(_rounded(values, half), key)
        graph.initializer.append(tensor)
        weights[key] = tensor
    return key


def _rounded(values: NDArray[np.generic], half: HalfType) -> NDArray[np.generic]:
    return values.astype(np.float16 if half == "fp16" else ml_dtypes.bfloat16)


def _float_tensors(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            yield value.name
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name
