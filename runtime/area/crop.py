"""Crop an ONNX graph to the part that an area of its maps needs, with the answers of the whole graph in it.

The work has two passes. The first one goes from the outputs to the inputs and finds for each tensor the box of
positions that is needed: a pointwise operator needs the box itself, a convolution needs its windows too, and an
operator that this module does not know needs its inputs whole. The second pass goes forward and cuts a tensor where
enough of it is not needed. The second pass keeps account of two boxes: the positions that are there, and those of them
that are right. At an artificial border a convolution pads with zeros where the whole graph has values, so its outputs
there are wrong, and each layer makes that margin wider. At the border of the picture the padding is that of the whole
graph. The first pass has asked for so much that what is needed is always right, and the second pass checks it.

Weights stay as they are. A crop is a ``Slice`` node, and its start is a multiple of the strides behind it. The position
code of CFLOW is a tensor like others, so its crop holds the codes of the original place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from flowedge.runtime.area.graph_facts import CropError, GraphFacts
from flowedge.runtime.area.onnx_model import Node, OnnxModel
from flowedge.runtime.area.windows import Box, Span, area, hull
from flowedge.text import printable

_WORTH: Final = 0.85  # of a tensor's positions; a cut that leaves more costs more than it saves

_Wanted: TypeAlias = Box | None
"""The box that is needed of a tensor, or None where the tensor is needed whole."""


class Cut(NamedTuple):
    """The place of one output of a cropped graph.

    Attributes:
        name: The name of the output in the cropped graph.
        box: The rows and columns of the whole graph's output that this output holds.
    """

    name: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Cropped:
    """A cropped graph.

    Attributes:
        data: The ONNX file.
        outputs: By the name of an output of the whole graph, its place.
        share: The share of the multiply-accumulates of the whole graph's convolutions that is left, 0..1.
    """

    data: bytes
    outputs: Mapping[str, Cut]
    share: float


class _Present(NamedTuple):
    """The positions of a cropped tensor that are there, and those that are as in the whole graph."""

    box: Box
    right: Box


def cropped(data: bytes, wanted: Mapping[str, Box]) -> Cropped:
    """Crop a graph.

    Args:
        data: The ONNX file, with all weights inside.
        wanted: By the name of an output ``(N, C, H, W)``, the rows and columns to keep. Other outputs are left out.

    Raises:
        CropError: The graph cannot be cropped.
        BundleError: The file is no ONNX model.
    """
    try:
        model = OnnxModel(data)
        if missing := wanted.keys() - set(model.outputs):
            raise CropError(f"the graph has no outputs named {', '.join(sorted(missing))}.")
        _follow_constant_choices(model)
        return _Crop(model, wanted).run()
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        # A bundle comes from elsewhere, and its graph may hold any attribute.
        raise CropError(
            f"the graph is none of FlowEdge's: {type(error).__name__}: {printable(str(error))}."
        ) from error


def _follow_constant_choices(model: OnnxModel) -> None:
    """Read the chosen tensor where a ``Where`` has a constant condition, so that nothing computes the other one."""
    chosen: dict[str, str] = {}
    for node in model.nodes:
        node.inputs = [chosen.get(name, name) for name in node.inputs]
        if node.op == "Where" and (constant := model.constants.get(node.inputs[0])) is not None:
            condition = constant.array()
            if condition is not None and condition.size == 1:
                chosen[node.outputs[0]] = node.inputs[1 if condition.all() else 2]


class _Crop:
    """The two passes over one graph."""

    def __init__(self, model: OnnxModel, wanted: Mapping[str, Box]) -> None:
        self.model, self.facts = model, GraphFacts(model)
        self.outputs = wanted
        self.wanted: dict[str, _Wanted] = dict(wanted)
        self.strides: dict[str, tuple[int, int]] = {}  # by which the start of a crop must be divisible
        self.present: dict[str, _Present] = {}  # without the tensors that are whole
        self.names: dict[str, str] = {}  # of the cropped tensors in place of the whole ones
        self.nodes: list[Node] = []
        self.work, self.whole_work = 0, 0

    def run(self) -> Cropped:
        needed = [node for node in reversed(self.model.nodes) if self._find_needs(node)][::-1]
        for name in self.model.inputs:
            self._cut_where_worth(name)
        for node in needed:
            self._add(node)
        outputs = {name: Cut(self._exactly(name, box), box) for name, box in self.outputs.items()}
        self.model.nodes = self.nodes
        shapes = {
            cut.name: (None, self.model.shapes[name][1], cut.box[0].length, cut.box[1].length)
            for name, cut in outputs.items()
        }
        return Cropped(
            data=self.model.encoded(shapes),
            outputs=outputs,
            share=self.work / self.whole_work if self.whole_work else 1.0,
        )

    # The first pass: from the outputs to the inputs ------------------------------------------------------------------

    def _find_needs(self, node: Node) -> bool:
        """Note what a node needs of its inputs. The result is False for a node whose outputs nobody needs."""
        wanted_outputs = [name for name in node.outputs if name in self.wanted]
        if not wanted_outputs:
            return False
        boxes = [self.wanted[name] for name in wanted_outputs]
        kind = self.facts.kind(node)
        if kind == "batch":
            return True
        if kind == "unknown" or any(box is None for box in boxes):
            for name in node.inputs:
                self._need(name, None, (1, 1))
            return True
        box = boxes[0]
        assert box is not None
        for other in boxes[1:]:
            assert other is not None
            box = hull(box, other)
        strides = self._lcm(*(self.strides.get(name, (1, 1)) for name in wanted_outputs))
        match kind:
            case "window":
                self._need_windows(node, box, strides)
            case "matrix":
                self._need_product(node, box)
            case _:
                for place, name in enumerate(node.inputs):
                    spatial = self.facts.is_spatial(node, place)
                    self._need(name, self.facts.broadcast(name, box) if spatial else None, strides)
        return True

    def _need_windows(self, node: Node, box: Box, strides: tuple[int, int]) -> None:
        name = node.inputs[0]
        windows, sizes = self.facts.windows(node), self.facts.size(name)
        rows, columns = (
            window.needs(span, length) for window, span, length in zip(windows, box, sizes, strict=True)
        )
        self._need(name, (rows, columns), (windows[0].stride * strides[0], windows[1].stride * strides[1]))
        for other in node.inputs[1:]:
            self._need(other, None, (1, 1))

    def _need_product(self, node: Node, box: Box) -> None:
        """Note the rows, or the columns, of the other factor that meet weights of a constant matrix."""
        place, weights = self.facts.matrix(node)
        of_outputs = (
            weights[box[0].start : box[0].end] if place == 0 else weights[:, box[1].start : box[1].end].T
        )
        used = np.flatnonzero(of_outputs.any(axis=0))
        span = Span(int(used[0]), int(used[-1]) + 1) if len(used) else Span(0, 1)
        self._need(node.inputs[1 - place], (span, box[1]) if place == 0 else (box[0], span), (1, 1))

    def _need(self, name: str, box: _Wanted, strides: tuple[int, int]) -> None:
        if not name or name in self.model.constants:
            return
        known = self.wanted.get(name, box)
        self.wanted[name] = None if box is None or known is None else hull(known, box)
        self.strides[name] = self._lcm(self.strides.get(name, (1, 1)), strides)

    @staticmethod
    def _lcm(*pairs: tuple[int, int]) -> tuple[int, int]:
        return math.lcm(*(pair[0] for pair in pairs)), math.lcm(*(pair[1] for pair in pairs))

    # The second pass: forward ----------------------------------------------------------------------------------------

    def _add(self, node: Node) -> None:
        """Add a node to the cropped graph, with crops of its inputs where they have to agree."""
        kind = self.facts.kind(node)
        given: _Present | None = None
        if kind == "window":
            given = self._add_windows(node)
        elif kind == "matrix" and self.wanted[node.outputs[0]] is not None:
            given = self._add_product(node)
        elif kind == "alike":
            given = self._add_alike(node)
        else:
            if kind != "batch" and any(name in self.present for name in node.inputs):
                raise CropError(f"the node {node.name} reads a cropped tensor whole.")
            self._append(node, node.inputs)
        for name in node.outputs:
            if given is not None:
                self.present[name] = given
            if name in self.wanted:
                self._cut_where_worth(name)

    def _add_alike(self, node: Node) -> _Present | None:
        """Add a node that keeps positions, with all of its inputs on the same positions."""
        spatial = [
            name for place, name in enumerate(node.inputs) if name and self.facts.is_spatial(node, place)
        ]
        if not any(name in self.present for name in spatial):
            self._append(node, node.inputs)
            return None
        box = right = self.facts.box(node.outputs[0])
        sizes = self.facts.size(node.outputs[0])
        for name in (one for one in spatial if one in self.present):
            here = self.present[name]
            for axis, (size, of_output) in enumerate(zip(self.facts.size(name), sizes, strict=True)):
                # The one row or column of an input that has no more goes with every row or column.
                if size > 1 or of_output == 1:
                    box = _with(box, axis, box[axis].meet(here.box[axis]))
                    right = _with(right, axis, right[axis].meet(here.right[axis]))
        right = (right[0].meet(box[0]), right[1].meet(box[1]))
        inputs = [
            self._sliced(name, self.facts.broadcast(name, box)) if name in spatial else name
            for name in node.inputs
        ]
        self._append(node, inputs)
        self._check(node, right)
        return _Present(box, right)

    def _add_windows(self, node: Node) -> _Present | None:
        name = node.inputs[0]
        windows, sizes = self.facts.windows(node), self.facts.size(name)
        here = self.present.get(name)
        whole = self.facts.box(node.outputs[0])
        if here is None:
            self._append(node, node.inputs)
            self._count(node, area(whole), area(whole))
            return None
        if any(span.start % window.stride for span, window in zip(here.box, windows, strict=True)):
            raise CropError(f"the node {node.name} reads a crop that does not begin at its stride.")
        self._append(node, [self.names.get(name, name), *node.inputs[1:]])
        axes = list(zip(windows, here.box, here.right, sizes, strict=True))
        rows, columns = (window.gives(span) for window, span, _, _ in axes)
        right_rows, right_columns = (window.right(right, span, size) for window, span, right, size in axes)
        self._count(node, area((rows, columns)), area(whole))
        self._check(node, (right_rows, right_columns))
        return _Present((rows, columns), (right_rows, right_columns))

    def _add_product(self, node: Node) -> _Present:
        """Add a product with a constant matrix of which only the rows and columns that are needed are left."""
        place, weights = self.facts.matrix(node)
        matrix, other = node.inputs[place], node.inputs[1 - place]
        box, needed = self.wanted[node.outputs[0]], self.wanted[other]
        assert box is not None
        here = self.present.get(other) or _Present(self.facts.box(other), self.facts.box(other))
        # Values beside the needed ones may be infinite, and a weight of 0 would make NaN of them. So they are cut off.
        inner = (needed or here.box)[place]
        kept = (inner, here.box[1]) if place == 0 else (here.box[0], inner)
        factor = self._sliced(other, kept)
        cut = (box[0], inner) if place == 0 else (inner, box[1])
        if area(cut) < weights.size:
            matrix = self._slice(matrix, 2, cut, (Span(0, weights.shape[0]), Span(0, weights.shape[1])))
        self._append(node, [matrix, factor] if place == 0 else [factor, matrix])
        if not here.right[place].holds(inner):
            raise CropError(f"the node {node.name} reads positions that are not right.")
        outer = 1 - place
        spans = [box[place], here.box[outer]] if place == 0 else [here.box[outer], box[place]]
        right = [box[place], here.right[outer]] if place == 0 else [here.right[outer], box[place]]
        return _Present((spans[0], spans[1]), (right[0], right[1]))

    def _append(self, node: Node, inputs: list[str]) -> None:
        node.inputs = [self.names.get(name, name) for name in inputs]
        self.nodes.append(node)

    def _check(self, node: Node, right: Box) -> None:
        """Check that what is needed of a node's outputs is right."""
        for name in node.outputs:
            box = self.wanted.get(name)
            if box is not None and not (right[0].holds(box[0]) and right[1].holds(box[1])):
                raise CropError(f"the node {node.name} would give wrong values at {box}.")

    def _count(self, node: Node, positions: int, whole: int) -> None:
        """Add the multiply-accumulates of a convolution."""
        if node.op == "Conv":
            weights = self.model.shapes.get(node.inputs[1], ())
            each = math.prod(size or 1 for size in weights)
            self.work += each * positions
            self.whole_work += each * whole

    def _cut_where_worth(self, name: str) -> None:
        """Crop a tensor to what is needed of it, where that leaves much less."""
        wanted = self.wanted.get(name)
        if wanted is None:
            return
        here = self.present.get(name)
        box = here.box if here is not None else self.facts.box(name)
        strides = self.strides.get(name, (1, 1))
        rows, columns = (
            Span(max(span.start // stride * stride, present.start), span.end)
            for span, stride, present in zip(wanted, strides, box, strict=True)
        )
        if area((rows, columns)) >= _WORTH * area(box):
            return
        self._cut(name, (rows, columns))

    def _cut(self, name: str, box: Box) -> None:
        """Crop a tensor for all nodes that follow."""
        here = self.present.get(name) or _Present(self.facts.box(name), self.facts.box(name))
        self.names[name] = self._slice(self.names.get(name, name), 4, box, here.box)
        right = (here.right[0].meet(box[0]), here.right[1].meet(box[1]))
        self.present[name] = _Present(box, right)

    def _sliced(self, name: str, box: Box) -> str:
        """Return the name of a crop of a tensor for one node, or the tensor's own name where it is that box."""
        shape = self.model.shapes.get(name, ())
        if name in self.present:
            here = self.present[name].box
        else:
            here = (
                Span(0, (shape[-2] if len(shape) > 1 else 1) or 1),
                Span(0, (shape[-1] if shape else 1) or 1),
            )
        actual = self.names.get(name, name)
        return actual if here == box else self._slice(actual, len(shape), box, here)

    def _slice(self, name: str, rank: int, box: Box, here: Box) -> str:
        """Add a ``Slice`` node, and return the name of what it gives."""
        number = len(self.nodes)
        spans = [
            (rank - 2 + axis, wanted.start - present.start, wanted.end - present.start)
            for axis, (wanted, present) in enumerate(zip(box, here, strict=True))
            if wanted != present
        ]
        given = f"area/{number}/{name}"
        starts, ends, axes = (
            self.model.add_int64(f"{given}/{what}", [span[place] for span in spans])
            for what, place in (("starts", 1), ("ends", 2), ("axes", 0))
        )
        self.nodes.append(
            Node(op="Slice", name=f"area/Slice_{number}", inputs=[name, starts, ends, axes], outputs=[given])
        )
        return given

    def _exactly(self, name: str, box: Box) -> str:
        """Crop an output to the box that was asked for."""
        here = self.present.get(name)
        if here is None or here.box != box:
            self._cut(name, box)
        right = self.present[name].right
        if not (right[0].holds(box[0]) and right[1].holds(box[1])):
            raise CropError(f"the output {name} would be wrong at {box}.")
        return self.names.get(name, name)


def _with(box: Box, axis: int, span: Span) -> Box:
    """Return a box with another span along one axis."""
    return (span, box[1]) if axis == 0 else (box[0], span)
