"""Convert the fp32 graph to a graph in which chosen blocks have a lower precision."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

import onnx

from flowedge.calibration.precision.blocks import CONVERTIBLE, block_of, blocks_of, sites_of
from flowedge.calibration.precision.calibrators import CalibratorName
from flowedge.calibration.precision.half import (
    HalfType,
    convertible_nodes,
    emulate_half,
    nodes_kept_in_fp32,
    store_in_half,
    to_half,
)
from flowedge.calibration.precision.qdq import CPU, GPU, Layout, Scales, quantise, tensors_to_observe
from flowedge.calibration.precision.ranges import TensorRange
from flowedge.graph_files import bytes_of_graph
from flowedge.manifest import GraphFile
from flowedge.onnx_files import load_graph, save_graph

ConvertedPrecision: TypeAlias = Literal["fp16", "bf16", "int8-gpu", "int8-cpu"]

FILES: Final[Mapping[ConvertedPrecision, str]] = MappingProxyType(
    {
        "fp16": "model.fp16.onnx",
        "bf16": "model.bf16.onnx",
        "int8-gpu": "model.int8.onnx",
        "int8-cpu": "model.int8-cpu.onnx",
    }
)
_LAYOUTS: Final[Mapping[ConvertedPrecision, Layout]] = MappingProxyType({"int8-gpu": GPU, "int8-cpu": CPU})
# The precision of the nodes outside of INT8 blocks. In the CPU layout it is float32, because float16 slows a CPU down.
_REST: Final[Mapping[ConvertedPrecision, HalfType | None]] = MappingProxyType(
    {"fp16": "fp16", "bf16": "bf16", "int8-gpu": "fp16", "int8-cpu": None}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Describe a converted graph that was written to a file.

    Attributes:
        graph: The graph's entry in the manifest. The scoring and the thresholds of the entry are those of the fp32
            graph.
        kept_in_fp32: The nodes that stay in float32 although the families' rule converts them, each with the reason.
        bytes: The size of the graph with its weights.
    """

    graph: GraphFile
    kept_in_fp32: Mapping[str, str]
    bytes: int


class Conversion(NamedTuple):
    """The result of converting a graph in place.

    Attributes:
        kept_in_fp32: The nodes that stay in float32 although the families' rule converts them, each with the reason.
        rounded: For each tensor that a converted node writes, the tensor with the rounded values, which all readers
            take. Half-precision graphs for devices have no such tensors.
    """

    kept_in_fp32: Mapping[str, str]
    rounded: Mapping[str, str]


class PrecisionConverter:
    """Converts one fp32 graph to lower precisions. The graph's weights are held in memory.

    Attributes:
        calibrator: The method that chooses an activation's range for INT8.
    """

    calibrator: CalibratorName

    def __init__(
        self,
        source: Path,
        fp32: GraphFile,
        ranges: Mapping[str, TensorRange] | None,
        calibrator: CalibratorName = "percentile",
        image_range: tuple[float, float] | None = None,
    ) -> None:
        """Read the fp32 graph.

        Args:
            source: The file of the graph.
            fp32: The manifest's entry of the graph.
            ranges: The values that the tensors of `tensors_for_conversion` took on images. Without ranges only
                half precision by the families' rule is possible.
            calibrator: The method that chooses an activation's range for INT8.
            image_range: The smallest and the largest value of an image after the preprocessing, where it is known.
        """
        self._model = load_graph(source)
        self._fp32 = fp32
        self._ranges = ranges
        sites = sites_of(self._model)
        self._macs = {name: blocks_of(filter(layout.has, sites)) for name, layout in _LAYOUTS.items()}
        self._half_nodes = convertible_nodes(self._model)
        self._exceptions: dict[HalfType, dict[str, str]] = {}
        self._image_range = image_range
        self._take(calibrator)

    def _take(self, calibrator: CalibratorName) -> None:
        self.calibrator = calibrator
        self._scales = {
            name: Scales(self._ranges or {}, calibrator, layout, self._image_range)
            for name, layout in _LAYOUTS.items()
        }

    def with_calibrator(self, calibrator: CalibratorName) -> PrecisionConverter:
        """Return a converter of the same graph and weights with another method for the ranges of INT8."""
        other = copy.copy(self)
        other._take(calibrator)
        return other

    @property
    def model(self) -> onnx.ModelProto:
        """The fp32 graph with inferred shapes and weights, which nobody may change."""
        return self._model

    def blocks(self, precision: ConvertedPrecision) -> Mapping[str, int]:
        """Return the blocks that can have a precision, with the multiply-accumulates of each, in the graph's order."""
        if precision in _LAYOUTS:
            return self._macs[precision]
        named = (block_of(node) for node in self._half_nodes)
        macs = self._macs["int8-cpu"]
        return MappingProxyType({name: macs.get(name, 0) for name in named if name is not None})

    def write(
        self, precision: ConvertedPrecision, blocks: Collection[str], target: Path, *, emulated: bool = False
    ) -> Written:
        """Write the graph in which the given blocks have the precision.

        Args:
            precision: The lower precision.
            blocks: Some of the blocks that the method `blocks` gives.
            target: The file to write. Large weights go into a file beside it.
            emulated: True writes a candidate for the gate, which a CPU runs. The candidate rounds every value of fp16
                and bf16 in float32 types. Outside of INT8 blocks the candidate computes in float32, which a CPU runs
                several times as fast as float16. False writes the graph for devices, and checks it.

        Raises:
            ExportError: The result is not a valid graph.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        found = self.convert(model, precision, blocks, emulated=emulated).kept_in_fp32
        del model.graph.value_info[:]  # the inferred shapes
        save_graph(model, target, check=not emulated)
        everything = self.blocks(precision)
        graph = GraphFile(
            precision=precision,
            file=FILES[precision],
            opset=model.opset_import[0].version,
            scoring=self._fp32.scoring,
            half=CONVERTIBLE if self._rest(precision, emulated) is not None else (),
            fp32_islands=tuple(sorted(found)),
            int8=tuple(name for name in everything if name in blocks) if precision in _LAYOUTS else (),
            given_back=tuple(name for name in everything if name not in blocks),
            pruned=self._fp32.pruned,
        )
        return Written(graph=graph, kept_in_fp32=found, bytes=bytes_of_graph(target))

    def convert(
        self,
        model: onnx.ModelProto,
        precision: ConvertedPrecision,
        blocks: Collection[str],
        *,
        emulated: bool = False,
    ) -> Conversion:
        """Convert the graph, or a part of it, in place, so that the given blocks have the precision.

        Args:
            model: A copy of the fp32 graph or of some of its nodes, with inferred shapes and weights.
            precision: The lower precision.
            blocks: Some of the blocks that the method `blocks` gives.
            emulated: The meaning is that of ``emulated`` in `write`.
        """
        # The nodes that the conversion to half precision leaves alone: INT8 nodes, or nodes of reverted blocks.
        keep: set[str] = set()
        rounded: dict[str, str] = {}
        if precision in _LAYOUTS:
            plan = quantise(model, blocks, self._scales[precision])
            keep |= plan.nodes
            rounded = {name: f"{name}.dq" for name in plan.written}
        else:
            reverted = {name for name in self.blocks(precision) if name not in blocks}
            keep |= {node for node in self._half_nodes if block_of(node) in reverted}
        rest = self._rest(precision, emulated)
        found: dict[str, str] = {}
        if rest is not None:
            found = {node: why for node, why in self._exceptions_of(rest).items() if node not in keep}
            if emulated:
                written = emulate_half(model, rest, keep={*keep, *found})
                rounded |= {name: f"{name}.rounded" for name in written}
            else:
                to_half(model, rest, keep={*keep, *found})
        elif not emulated:
            store_in_half(model)
        return Conversion(kept_in_fp32=found, rounded=rounded)

    @staticmethod
    def _rest(precision: ConvertedPrecision, emulated: bool) -> HalfType | None:
        """Return the half precision of the nodes outside of INT8 blocks, or None for float32."""
        return None if emulated and precision in _LAYOUTS else _REST[precision]

    def _exceptions_of(self, half: HalfType) -> Mapping[str, str]:
        """Return the nodes that stay in float32 because float16 cannot hold their values, and keep the result."""
        if half not in self._exceptions:
            self._exceptions[half] = nodes_kept_in_fp32(self._model, half, self._ranges)
        return self._exceptions[half]


class Observed(NamedTuple):
    """The tensors whose values on images must be observed before a conversion.

    Attributes:
        tensors: The tensors whose extremes must be known.
        counted: Some of these tensors, whose values must be counted too.
    """

    tensors: Sequence[str]
    counted: Sequence[str]


def tensors_for_conversion(source: Path, precisions: Collection[ConvertedPrecision]) -> Observed:
    """Return the tensors to observe for some precisions. INT8 needs the counts of values, float16 only the extremes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source), load_external_data=False))
    counted: set[str] = set()
    if any(name in _LAYOUTS for name in precisions):
        counted |= set(tensors_to_observe(model))
    names = set(counted)
    if any(_REST[name] == "fp16" for name in precisions):
        # Weights are known without images, and only float tensors change their type.
        wanted = set(convertible_nodes(model))
        weights = {tensor.name for tensor in model.graph.initializer}
        floats = {
            value.name
            for value in (*model.graph.value_info, *model.graph.input)
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        names |= {
            name
            for node in model.graph.node
            if node.name in wanted
            for name in (*node.input, *node.output)
            if name in floats and name not in weights
        }
    return Observed(tuple(sorted(names)), tuple(sorted(counted)))
