"""Write a half-precision graph without a bundle around it."""

from __future__ import annotations

from pathlib import Path

import onnx

from flowedge.calibration.precision.half import HalfType, nodes_kept_in_fp32, to_half
from flowedge.onnx_files import save_graph


def write_half(source: Path, target: Path, half: HalfType) -> dict[str, str]:
    """Write the graph of ``source`` in half precision, and return the nodes that stay in float32 with the reasons."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    kept = nodes_kept_in_fp32(model, half)
    to_half(model, half, keep=kept)
    del model.graph.value_info[:]
    save_graph(model, target)
    return kept
