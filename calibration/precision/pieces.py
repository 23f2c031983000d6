"""Cut a graph into pieces, at least one for each block, and run every piece in fp32 or in a lower precision.

The search for a precision compares many graphs that differ in a few blocks. Whole graphs would be written and opened
for each of them, and would compute again what did not change. A piece is opened once in fp32 and once in the lower
precision. A candidate is then a choice for each piece, and only pieces whose input changed run again.

The pieces round where the whole graph rounds, except where a sum or a pooling reads another piece. So the answers of
the pieces decide the search alone. The gate judges whole graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from flowedge.calibration.precision.blocks import block_of
from flowedge.calibration.precision.converted_graph import ConvertedPrecision, PrecisionConverter
from flowedge.runtime.engines.onnxrt import open_part

Values: TypeAlias = Mapping[str, NDArray[Any]]
"""Tensors by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some consecutive nodes of a graph.

    Attributes:
        nodes: The places of the nodes in the graph.
        block: The block of the piece. Several pieces have the same block where a backbone runs on several scales, or
            where the nodes of blocks alternate. The value is None only in a graph without blocks.
        inputs: The tensors that the piece reads and that are no weights.
        outputs: The tensors that later pieces read, or that are wanted of the graph.
    """

    nodes: range
    block: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def pieces_of(
    model: onnx.ModelProto, blocks: Collection[str], outputs: Sequence[str] | None = None
) -> tuple[Piece, ...]:
    """Cut a graph into pieces. A piece begins with the node of a block and goes on to the next other block.

    Args:
        model: The graph.
        blocks: The blocks whose precision can be chosen. All other nodes belong to the piece before them.
        outputs: The tensors that are wanted of the graph, by default all of its outputs. Pieces that none of these
            tensors needs are left out.
    """
    nodes = model.graph.node
    weights = {tensor.name for tensor in model.graph.initializer}
    constants = {name for node in nodes if not node.input for name in node.output}
    named = [name if (name := block_of(node.name)) in blocks else None for node in nodes]
    cuts = _cuts(named)
    pieces: list[Piece] = []
    needed = {value.name for value in model.graph.output} if outputs is None else set(outputs)
    # Backwards, because the outputs of a piece are what the pieces after it read.
    for begin, end in reversed(list(itertools.pairwise(cuts))):
        own = [node for node in nodes[begin:end] if node.input]
        written = [name for node in own for name in node.output if name]
        given = [name for name in written if name in needed]
        if not given:
            continue
        read = {name for node in own for name in node.input if name}
        inputs = sorted(read - weights - constants - set(written))
        needed = (needed - set(written)) | set(inputs)
        block = next((name for name in named[begin:end] if name is not None), None)
        pieces.append(Piece(nodes=range(begin, end), block=block, inputs=tuple(inputs), outputs=tuple(given)))
    return tuple(reversed(pieces))


def _cuts(blocks: Sequence[str | None]) -> list[int]:
    """Return the places where pieces begin, and the number of nodes."""
    cuts = [0]
    last: str | None = None
    for place, name in enumerate(blocks):
        # The nodes before the first block belong to its piece.
        if name is not None and name != last:
            if last is not None:
                cuts.append(place)
            last = name
    return [*cuts, len(blocks)]


class PiecedGraph:
    """Runs the pieces of one fp32 graph, each in fp32 or in a lower precision. Threads may share it.

    Each run takes one thread, so several images run at a time.

    Attributes:
        opened: The number of pieces that were opened so far, in all precisions.
        runs: The number of runs of a piece so far.
    """

    def __init__(self, converter: PrecisionConverter, precision: ConvertedPrecision) -> None:
        """Cut the graph of a converter. A piece is opened when it first runs.

        Args:
            converter: The converter of the fp32 graph.
            precision: The precision whose blocks have pieces of their own.
        """
        self._converter = converter
        self._pieces = pieces_of(converter.model, converter.blocks(precision))
        self._input = converter.model.graph.input[0].name
        self._outputs = [value.name for value in converter.model.graph.output]
        self._known: dict[tuple[int, ConvertedPrecision | None, bool], _Opened] = {}
        self._lock = Lock()
        self.opened = self.runs = 0

    def values(self, image: NDArray[Any]) -> Values:
        """Run the graph in fp32 and return all tensors between its pieces.

        Args:
            image: The graph's input for one image.
        """
        values = {self._input: image}
        for place in range(len(self._pieces)):
            values |= self._run(place, None, (), values)
        return values

    def changed(self, fp32: Values, precision: ConvertedPrecision, block: str) -> Values:
        """Return the graph's outputs when one block alone has the precision.

        Pieces before the block do not run, and neither do pieces of which no input changed.

        Args:
            fp32: The tensors that `values` gave for an image.
            precision: The lower precision.
            block: The block.
        """
        now: dict[str, NDArray[Any]] = {}
        for place, piece in enumerate(self._pieces):
            chosen = piece.block == block
            if not chosen and not any(name in now for name in piece.inputs):
                continue
            answers = self._run(place, precision if chosen else None, (block,), {**fp32, **now})
            now |= {name: one for name, one in answers.items() if not np.array_equal(one, fp32[name])}
        return {name: now.get(name, fp32[name]) for name in self._outputs}

    def candidate(
        self, image: NDArray[Any], precision: ConvertedPrecision, blocks: Collection[str]
    ) -> Values:
        """Return the graph's outputs when some blocks have the precision.

        Args:
            image: The graph's input for one image.
            precision: The lower precision.
            blocks: The blocks.
        """
        values = {self._input: image}
        for place in range(len(self._pieces)):
            values |= self._run(place, precision, blocks, values)
        return {name: values[name] for name in self._outputs}

    def close(self) -> None:
        """Free the memory of all pieces. Pieces are opened again where they run again."""
        self._known.clear()

    def _run(
        self, place: int, precision: ConvertedPrecision | None, blocks: Collection[str], values: Values
    ) -> Values:
        opened = self._open(place, precision, blocks)
        return opened({name: values[name] for name in self._pieces[place].inputs})

    def _open(self, place: int, precision: ConvertedPrecision | None, blocks: Collection[str]) -> _Opened:
        piece = self._pieces[place]
        is_chosen = piece.block in blocks
        # INT8 leaves a piece without a chosen block as it is. Half precision may also convert nodes between blocks.
        if precision is not None and precision.startswith("int8") and not is_chosen:
            precision = None
        key = (place, precision, is_chosen)
        with self._lock:
            self.runs += 1
            if key not in self._known:
                self._known[key] = self._load(piece, precision, is_chosen)
                self.opened += 1
            return self._known[key]

    def _load(self, piece: Piece, precision: ConvertedPrecision | None, is_chosen: bool) -> _Opened:
        model = graph_of_piece(self._converter.model, piece)
        names = {name: name for name in piece.outputs}
        if precision is not None:
            blocks = [piece.block] if is_chosen and piece.block is not None else []
            rounded = self._converter.convert(model, precision, blocks, emulated=True).rounded
            names = {name: rounded.get(name, name) for name in piece.outputs}
            for output in model.graph.output:
                output.name = names[output.name]
        del model.graph.value_info[:]  # The types of before the conversion.
        run = open_part(model.SerializeToString(), f"a piece of the graph ({piece.block})")

        def renamed(inputs: Values) -> Values:
            answers = run(inputs)
            return {name: answers[rounded] for name, rounded in names.items()}

        return renamed


_Opened: TypeAlias = Callable[[Values], Values]


def graph_of_piece(model: onnx.ModelProto, piece: Piece) -> onnx.ModelProto:
    """Return one piece as a graph of its own, with its weights and the types of its tensors."""
    graph = model.graph
    own = [graph.node[place] for place in piece.nodes if graph.node[place].input]
    read = {name for node in own for name in node.input}
    constants = [node for node in graph.node if not node.input and read.intersection(node.output)]
    written = {name for node in own for name in node.output}
    typed = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = "piece"
    part.graph.node.extend([*constants, *own])
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.graph.input.extend(typed[name] for name in piece.inputs)
    part.graph.output.extend(typed.get(name, onnx.ValueInfoProto(name=name)) for name in piece.outputs)
    ends = {*piece.inputs, *piece.outputs}
    part.graph.value_info.extend(typed[name] for name in sorted(written - ends) if name in typed)
    return part
