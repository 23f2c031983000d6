"""State the facts of an ONNX graph that a crop needs: how each node treats positions, and the sizes of its tensors."""

from __future__ import annotations

from typing import Any

from flowedge.errors import BundleError
from flowedge.framing import Size
from flowedge.runtime.area.onnx_model import Node, OnnxModel
from flowedge.runtime.area.shapes import (
    POINTWISE,
    POINTWISE_FIRST,
    REDUCTIONS,
    is_known,
    note_shapes,
    reduced_axes,
    window_of,
)
from flowedge.runtime.area.windows import Box, Span, Window


class CropError(BundleError):
    """A graph cannot be cropped."""


class GraphFacts:
    """Answers questions about the nodes and tensors of one graph."""

    def __init__(self, model: OnnxModel) -> None:
        note_shapes(model)
        self._model = model

    def kind(self, node: Node) -> str:
        """Tell how a node treats positions.

        Returns:
            ``alike`` for a node that keeps positions, ``window``, ``matrix``, ``batch`` for one that reads the size of
            the batch alone, or ``unknown``.
        """
        if node.op == "Shape" and (node.attributes.get("start") or 0, node.attributes.get("end")) == (0, 1):
            return "batch"
        shapes = self._model.shapes
        if any(len(shapes.get(name, ())) != 4 for name in node.outputs):
            return "unknown"
        if not all(is_known(shapes.get(name)) for name in (*node.outputs, *node.inputs) if name):
            return "unknown"
        attributes = node.attributes
        match node.op:
            case "Concat" | "Gather" | "Split":
                return "alike" if attributes.get("axis") in (1, -3) else "unknown"
            case "Conv" | "MaxPool" | "AveragePool" | "Pad":
                is_sized = len(node.outputs) == 1 and len(self._model.shapes.get(node.inputs[0], ())) == 4
                return "window" if is_sized and window_of(self._model, node) is not None else "unknown"
            case "MatMul":
                return "matrix" if self._has_matrix(node) else "unknown"
        if node.op in REDUCTIONS:
            return "alike" if reduced_axes(self._model, node) in ((1,), (-3,)) else "unknown"
        return "alike" if node.op in POINTWISE or node.op in POINTWISE_FIRST else "unknown"

    def is_spatial(self, node: Node, place: int) -> bool:
        """True for an input of an ``alike`` node that has positions, False for indices, scales and axes."""
        if node.op in ("Gather", "Split", *REDUCTIONS, *POINTWISE_FIRST) and place > 0:
            return False
        return node.op == "Concat" or max(self.size(node.inputs[place])) > 1

    def broadcast(self, name: str, box: Box) -> Box:
        """Return a box with the one row or column of an input that has no more."""
        rows, columns = (
            Span(0, 1) if size == 1 else span for size, span in zip(self.size(name), box, strict=True)
        )
        return rows, columns

    def size(self, name: str) -> Size:
        """Return height and width of a tensor. A tensor of fewer dimensions has 1 for the missing ones."""
        shape = self._model.shapes.get(name)
        if shape is None and name:
            raise CropError(f"the graph does not note the shape of {name}.")
        sizes = (1, 1, *(shape or ()))[-2:]
        if None in sizes:
            raise CropError(f"the graph does not note the size of {name}.")
        return sizes[0] or 1, sizes[1] or 1

    def box(self, name: str) -> Box:
        height, width = self.size(name)
        return Span(0, height), Span(0, width)

    def windows(self, node: Node) -> tuple[Window, Window]:
        windows = window_of(self._model, node)
        assert windows is not None, "the kind of the node is window"
        return windows

    def _has_matrix(self, node: Node) -> bool:
        places = [
            place
            for place, name in enumerate(node.inputs)
            if name in self._model.constants and len(self._model.constants[name].shape) == 2
        ]
        if len(places) != 1 or len(self._model.shapes.get(node.inputs[1 - places[0]], ())) != 4:
            return False
        return self._model.constants[node.inputs[places[0]]].array() is not None

    def matrix(self, node: Node) -> tuple[int, Any]:
        """Return which factor of a product is a constant matrix, and the matrix."""
        place = 0 if node.inputs[0] in self._model.constants else 1
        return place, self._model.constants[node.inputs[place]].array()
