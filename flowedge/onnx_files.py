"""Read and write ONNX graphs with all their weights. Only code that edits graphs imports this module: it needs onnx."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx

from flowedge.errors import ExportError
from flowedge.graph_files import EXTERNAL_ABOVE, weights_beside


def load_graph(source: Path) -> onnx.ModelProto:
    """Read a graph with inferred shapes and all its weights.

    Raises:
        ExportError: The weights are not in the file beside the graph.
    """
    # Shapes are inferred before the weights are read, because a message with weights must stay below 2 GiB.
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source), load_external_data=False))
    # The onnx package refuses a file of weights with several hard links, and a bundle's clone has such a file. So the
    # weights are read here.
    beside = weights_beside(source)
    with beside.open("rb") if beside.exists() else contextlib.nullcontext() as file:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            stored = {entry.key: entry.value for entry in tensor.external_data}
            if file is None or stored["location"] != beside.name:
                raise ExportError(f"the weights of {source} are not in {beside}. Export the bundle again.")
            file.seek(int(stored.get("offset", 0)))
            tensor.raw_data = file.read(int(stored["length"]))
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
    return model


def save_graph(model: onnx.ModelProto, target: Path, *, check: bool = True) -> None:
    """Write a graph and check it. Large weights go into a file beside the graph.

    Args:
        model: The graph.
        target: The file to write.
        check: False for a candidate of the gate. The engine that runs it finds out if it is not valid.

    Raises:
        ExportError: The graph is not valid.
    """
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_ABOVE
    onnx.save(
        model,
        str(target),
        save_as_external_data=large,
        location=weights_beside(target).name if large else None,
    )
    if not check:
        return
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid: {error}") from error
