"""Count the multiply-accumulates of an ONNX file, by the shapes that a run gives."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np

from flowedge.errors import EngineUnavailableError, MissingPackageError
from flowedge.packages import pip_install

_PRODUCTS: Final = ("Conv", "MatMul", "Gemm")
_DTYPES: Final = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}


def multiply_accumulates(path: Path) -> int:
    """Count the multiply-accumulates of all convolutions and matrix products for one image.

    Raises:
        MissingPackageError: The onnx package or ONNX Runtime is not installed.
        EngineUnavailableError: ONNX Runtime cannot run the graph.
    """
    try:
        import onnx
        import onnxruntime as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"counting a graph's operations needs the package {error.name}. "
            f"Install it with: {pip_install('calibrate')}"
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        return _count(model, path)
    except Exception as error:  # a foreign file may break anything
        raise EngineUnavailableError(
            f"the operations of {path} cannot be counted: {' '.join(str(error).split())}."
        ) from error


def _count(model: Any, path: Path) -> int:
    graph = model.graph
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    # Weights have their shapes in the file. The shapes of all other tensors are taken from a run.
    names = {name for node in products for name in (*node.input[:2], node.output[0])} - shapes.keys()
    shapes |= _shapes_in_a_run(model, path, names)
    total = 0
    # Each value of the output costs as many products as the kernel has weights for it, or the shared side is long.
    for node in products:
        if node.op_type == "Conv":
            per_output = math.prod(shapes[node.input[1]][1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            per_output = shapes[node.input[0]][-2 if transposed else -1]
        total += per_output * math.prod(shapes[node.output[0]])
    return total


def _shapes_in_a_run(model: Any, path: Path, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Run the graph on zeros at batch 1, and return the shapes of the named tensors.

    ONNX's shape inference gives up on a reshape by computed sizes, so the graph is run.
    """
    import onnx
    import onnxruntime as ort

    # Every tensor whose shape is wanted becomes an output. Nothing is optimised, so that none of them is fused away.
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in sorted(names) if n not in given
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        edited = Path(folder) / "graph.onnx"
        onnx.save(model, str(edited))
        # The file names its weights by a place relative to itself, so they are put beside the edited file.
        for name in {
            e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"
        }:
            _put_beside(path.parent / name, Path(folder) / Path(name).name)
        session = ort.InferenceSession(str(edited), options, providers=["CPUExecutionProvider"])
    feed = {
        value.name: np.zeros(
            [size if isinstance(size, int) else 1 for size in value.shape],
            _DTYPES.get(value.type, np.float32),
        )
        for value in session.get_inputs()
    }
    wanted = [value.name for value in session.get_outputs() if value.name in names]
    answers = [np.asarray(answer) for answer in session.run(wanted, feed)]
    found = {name: array.shape for name, array in zip(wanted, answers, strict=True)}
    return found | {name: array.shape for name, array in feed.items()}


def _put_beside(weights: Path, target: Path) -> None:
    """Make a hard link to the weights, or a copy where the file system allows no link.

    ONNX Runtime follows no symbolic link out of a folder.
    """
    try:
        os.link(weights, target)
    except OSError:
        shutil.copyfile(weights, target)
