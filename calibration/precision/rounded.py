"""Compute the answers of INT8 and pruned graphs by the rules of ONNX, for comparison with any engine that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.manifest import level_outputs
from flowedge.runtime.device.npz import npz_from_arrays
from flowedge.runtime.opening.selftest import FRAMES, read_selftest, rounded_answers_file
from flowedge.runtime.verify import images_of_selftest


def files_of_rounded_answers(
    bundle: Bundle, graphs: Mapping[str, Path], *, threads: int | None
) -> dict[str, bytes]:
    """Record what INT8 and pruned graphs answer to the frames of a bundle's self-test.

    Args:
        bundle: The bundle, with or without these graphs.
        graphs: The files of graphs by precision. Graphs of other precisions are left out.
        threads: The number of CPU threads, None for ONNX Runtime's choice.

    Returns:
        The content of the bundle's new files, by their path. No file is new where the bundle has no self-test.

    Raises:
        BundleError: The self-test does not fit the manifest.
    """
    if FRAMES not in {file.path for file in bundle.manifest.files}:
        return {}
    images = images_of_selftest(bundle, read_selftest(bundle))
    names = list(level_outputs(bundle.manifest.levels, bundle.manifest.nfa))
    return {
        rounded_answers_file(precision): npz_from_arrays(
            rounded_answers(graph, images, names, threads=threads)
        )
        for precision, graph in graphs.items()
        if precision.startswith("int8") or precision == "pruned"
    }


def rounded_answers(
    graph: Path, images: NDArray[Any], names: Sequence[str], *, threads: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Evaluate a graph as ONNX defines it, image by image.

    ONNX Runtime fuses nothing here: each convolution is a float32 product of dequantised values, and each rounding
    takes place. The answers therefore depend on no INT8 kernel and on no processor.

    Args:
        graph: The file of the graph.
        images: The graph's input ``(N, ...)``.
        names: The outputs to give.
        threads: The number of CPU threads, None for ONNX Runtime's choice.

    Returns:
        By the name of the output, the answers to all images, ``(N, ...)`` float32.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    single = session.get_inputs()[0].name
    answers = [session.run(names, {single: np.ascontiguousarray(image[None])}) for image in images]
    return {name: np.concatenate(parts) for name, *parts in zip(names, *answers, strict=True)}
