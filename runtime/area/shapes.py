"""Find the shapes of tensors that an ONNX file does not note, for the operators of FlowEdge's graphs.

Graphs of lower precision note no shapes of inner tensors. A shape that cannot be found stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from flowedge.runtime.area.onnx_model import Node, OnnxModel
from flowedge.runtime.area.windows import Window, windows_of

Shape: TypeAlias = tuple[int | None, ...]

POINTWISE: Final = frozenset(
    [
        *(
            "Abs",
            "Add",
            "And",
            "Atan",
            "Cast",
            "Ceil",
            "Clip",
            "Div",
            "Elu",
            "Equal",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
        ),
        *(
            "Greater",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "Less",
            "Log",
            "Max",
            "Min",
            "Mish",
            "Mul",
        ),
        *(
            "Neg",
            "Not",
            "Or",
            "PRelu",
            "Pow",
            "Reciprocal",
            "Relu",
            "Selu",
            "Sigmoid",
            "Sign",
            "Softplus",
            "Sqrt",
        ),
        *("Sub", "Sum", "Tanh", "ThresholdedRelu", "Where"),
    ]
)
"""Operators whose output at a position depends on the inputs at that position alone."""

POINTWISE_FIRST: Final = frozenset({"BatchNormalization", "DequantizeLinear", "QuantizeLinear"})
"""Pointwise operators whose other inputs are parameters."""

REDUCTIONS: Final = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"})


def note_shapes(model: OnnxModel) -> None:
    """Add the shapes of the tensors that the file does not note, where they can be found."""
    for node in model.nodes:
        if all(is_known(model.shapes.get(name)) for name in node.outputs):
            continue
        found = _shape_of(model, node)
        if found is not None:
            model.shapes.update(dict.fromkeys(node.outputs, found))


def is_known(shape: Shape | None) -> bool:
    """True for a shape of which nothing but the number of images is open."""
    return shape is not None and None not in shape[1:]


def window_of(model: OnnxModel, node: Node) -> tuple[Window, Window] | None:
    """Return the windows of the rows and the columns of a convolution, a pooling or a padding.

    The result is None for a node with other windows: those of a rounded size, or a padding of channels.
    """
    attributes = node.attributes
    if node.op == "Pad":
        pads = numbers(model, node, 1)
        is_known = attributes.get("mode") in (None, "constant", "reflect") and len(node.inputs) < 4
        if (
            pads is None
            or not is_known
            or len(pads) != 8
            or min(pads) < 0
            or any(pads[n] for n in (0, 1, 4, 5))
        ):
            return None
        mirrors = attributes.get("mode") == "reflect"
        rows, columns = (Window(before=pads[axis], after=pads[axis + 4], mirrors=mirrors) for axis in (2, 3))
        return rows, columns
    kernel = attributes.get("kernel_shape")
    is_plain = attributes.get("auto_pad") in (None, "", "NOTSET") and not attributes.get("ceil_mode")
    if node.op not in ("Conv", "MaxPool", "AveragePool") or not is_plain or not kernel or len(kernel) != 2:
        return None
    return windows_of(
        kernel,
        attributes.get("strides") or (1, 1),
        attributes.get("pads") or (0, 0, 0, 0),
        attributes.get("dilations") or (1, 1),
    )


def numbers(model: OnnxModel, node: Node, place: int) -> tuple[int, ...] | None:
    """Return an input of a node that is a constant list of whole numbers, or None where it is not."""
    constant = model.constants.get(node.inputs[place]) if len(node.inputs) > place else None
    values = None if constant is None or constant.data_type != 7 else constant.array()
    return None if values is None else tuple(values.ravel().tolist())


def reduced_axes(model: OnnxModel, node: Node) -> tuple[int, ...] | None:
    """Return the axes that a reduction takes together and keeps as 1, or None for another reduction."""
    axes = node.attributes.get("axes") or numbers(model, node, 1)
    return None if axes is None or node.attributes.get("keepdims") == 0 else tuple(axes)


def _shape_of(model: OnnxModel, node: Node) -> Shape | None:
    inputs = [model.shapes.get(name) for name in node.inputs if name]
    if node.op == "Expand":
        return _expanded(model, node)
    if not inputs or any(shape is None for shape in inputs):
        return None
    known: list[Shape] = [shape for shape in inputs if shape is not None]
    first, axis = known[0], node.attributes.get("axis") or 0
    match node.op:
        case "Conv" | "MaxPool" | "AveragePool" | "Pad" if len(first) == 4:
            windows = window_of(model, node)
            height, width = first[2:]
            if windows is None or height is None or width is None:
                return None
            sizes = (window.outputs(length) for window, length in zip(windows, (height, width), strict=True))
            return first[0], known[1][0] if node.op == "Conv" else first[1], *sizes
        case "Concat":
            sizes_along = [shape[axis] for shape in known]
            total = None if None in sizes_along else sum(size for size in sizes_along if size is not None)
            return (*first[:axis], total, *first[axis + 1 :])
        case "Gather":
            return (*first[:axis], *known[1], *first[axis + 1 :])
        case "MatMul":
            longer = max(known, key=len)
            return (*longer[:-2], known[0][-2], known[1][-1]) if min(map(len, known)) >= 2 else None
        case "Shape":
            return (len(range(len(first))[node.attributes.get("start") or 0 : node.attributes.get("end")]),)
    if node.op in REDUCTIONS:
        axes = reduced_axes(model, node)
        kept = {one % len(first) for one in axes or ()}
        return None if axes is None else tuple(1 if n in kept else size for n, size in enumerate(first))
    if node.op in POINTWISE_FIRST:
        return first
    return _broadcast(known) if node.op in POINTWISE else None


def _expanded(model: OnnxModel, node: Node) -> Shape | None:
    """Return the shape that an ``Expand`` node gives, whose target is a constant or a list of sizes put together."""
    first, target = model.shapes.get(node.inputs[0]), node.inputs[1]
    sizes: Shape | None = numbers(model, node, 1)
    for other in model.nodes:
        if target in other.outputs and other.op == "Concat":
            sizes = ()
            for place, name in enumerate(other.inputs):
                if model.shapes.get(name) != (1,):
                    return None
                sizes = (*sizes, *(numbers(model, other, place) or (None,)))
    return None if first is None or sizes is None else _broadcast([first, sizes])


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))
