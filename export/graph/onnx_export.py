"""Trace a lowered ``FlowModel`` to an ONNX file, and check the file's inputs, outputs and opset."""

from __future__ import annotations

import ast
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from flowedge.errors import ExportError
from flowedge.export.graph import ir
from flowedge.export.graph.emit import DetectorModule
from flowedge.export.graph.frame_graph import Preprocess
from flowedge.export.graph.score import score_constants
from flowedge.families import TRAITS
from flowedge.graph_files import EXTERNAL_ABOVE
from flowedge.manifest import NfaOutputs, Preprocessing, level_outputs

OPSETS: Final = range(17, 22)
DEFAULT_OPSET: Final = 18
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInput:
    """The frames that a graph takes without preprocessing by the host.

    Attributes:
        size: ``(height, width)`` of the frames in pixels.
        preprocessing: The steps from a frame to the network's input, which become nodes of the graph.
    """

    size: tuple[int, int]
    preprocessing: Preprocessing


def output_names(model: ir.FlowModel, nfa: NfaOutputs | None = None) -> list[str]:
    """Return the names of the graph's outputs, in order."""
    multiplicative = ["anomaly_map_mul"] if TRAITS[model.family].multiplicative_map else []
    return ["score", "anomaly_map", *multiplicative, *level_outputs(model.levels, nfa)]


def onnx_from_model(
    model: ir.FlowModel,
    backbone: nn.Module,
    path: Path,
    *,
    nfa: NfaOutputs | None = None,
    frames: FrameInput | None = None,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Trace the model and write ``path``, and ``path.data`` where the weights are large.

    The backbone has no weights afterwards, because the function frees them.

    Args:
        model: The lowered model. With ``nfa`` it must be lowered with its latents kept.
        backbone: The feature extractor.
        path: The file to write.
        nfa: The outputs for the number of false alarms, or None for no such outputs.
        frames: The frames that the graph takes, or None for a graph that takes the network's input.
        opset: The ONNX opset, one of ``OPSETS``.

    Raises:
        ValueError: ``opset`` is not one of ``OPSETS``.
        ExportError: The tracer or the checker refused, the traced graph does not keep the contract, or a level is
            too small for the windows of ``nfa``.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
    preprocess = None if frames is None else Preprocess(frames.preprocessing, frames.size)
    detector = DetectorModule(backbone, model, nfa, preprocess).eval()
    input_name = "image" if frames is None else "frame"
    example = (
        torch.zeros(2, 3, *model.image_size)
        if frames is None
        else torch.zeros(2, *frames.size, 3, dtype=torch.uint8)
    )
    outputs = output_names(model, nfa)
    size = sum(t.numel() * t.element_size() for t in (*detector.parameters(), *detector.buffers()))
    try:
        program = _trace(detector, example, input_name, outputs, opset)
    except Exception as error:
        raise ExportError(
            f"torch could not trace the {model.family} graph at opset {opset}: {error}"
        ) from error
    _pool_globally(program.model)
    _name_nodes(program.model)
    _set_score_constants(program.model, model)
    program.save(str(path), external_data=size > EXTERNAL_ABOVE)
    _free_weights(detector, program.model)
    _check(path, input_name, outputs, opset)


def _trace(detector: nn.Module, example: Tensor, input_name: str, outputs: list[str], opset: int) -> Any:
    """Run torch's exporter without its notes on standard output and its warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter(
                "ignore"
            )  # the tracer warns of its own deprecations, and users cannot act on them
            return torch.onnx.export(
                detector,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[input_name],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    finally:
        logger.setLevel(level)


def _pool_globally(model: Any) -> None:
    """Replace each mean over all pixels by a global pooling, which ONNX Runtime has in its own layouts and in INT8."""
    for node in model.graph:
        if node.op_type != "ReduceMean" or len(node.inputs) != 2 or node.inputs[0].shape is None:
            continue
        axes, keeps = node.inputs[1].const_value, node.attributes.get("keepdims")
        is_kept = keeps is None or keeps.as_int() == 1
        over_pixels = axes is not None and sorted(axis % 4 for axis in axes.numpy().ravel()) == [2, 3]
        if len(node.inputs[0].shape) == 4 and is_kept and over_pixels:
            node.resize_inputs(1)
            node.op_type = "GlobalAveragePool"
            node.attributes.clear()


def _name_nodes(model: Any) -> None:
    """Name each node after its module (``backbone/…``, ``flow/…``), and remove the tracer's metadata."""
    uses: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        # A name with a leading underscore belongs to the tracer. The innermost other scope is the module.
        module = next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "")
        base = "/".join(part for part in (module.replace(".", "/"), node.op_type) if part)
        count = uses.get(base, 0)
        uses[base] = count + 1
        node.name = f"{base}_{count}" if count else base
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name = "flowedge"


def _set_score_constants(graph: Any, model: ir.FlowModel) -> None:
    """Replace the placeholders of the score maxima by their values."""
    constants = score_constants(model)
    missing = constants.keys() - graph.graph.initializers.keys()
    if missing:
        raise ExportError(
            f"the traced graph has no constants named {', '.join(sorted(missing))}, which the tracer removed. "
            "Try another --opset, or another version of torch."
        )
    for name, value in constants.items():
        graph.graph.initializers[name].const_value = onnx_ir.tensor(value, name=name)


def _free_weights(detector: nn.Module, graph: Any) -> None:
    """Free the weights of the module and of the graph.

    The rewriting rules of onnxscript keep a reference to the last graph that they processed for the whole process.
    """
    for tensor in (*detector.parameters(), *detector.buffers()):
        tensor.data = torch.empty(0)
    for value in graph.graph.initializers.values():
        value.const_value = None


def _check(path: Path, input_name: str, expected: list[str], opset: int) -> None:
    """Check that the written graph is valid and has the inputs, outputs and opset that were asked for."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the traced graph is not valid ONNX: {error}. Try another --opset, or another version of torch."
        ) from error
    graph = onnx.load(str(path), load_external_data=False)
    outputs = [value.name for value in graph.graph.output]
    if outputs != expected or [value.name for value in graph.graph.input] != [input_name]:
        raise ExportError(
            f"the traced graph has the outputs {outputs}, and {expected} were expected. Try another --opset."
        )
    got = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    if got != opset:
        raise ExportError(
            f"the traced graph has opset {got}, and {opset} was asked for. Name another --opset."
        )
