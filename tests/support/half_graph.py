"""A half-precision graph without a bundle around it."""

from __future__ import annotations

from pathlib import Path

import onnx

from flowedge.calibration.precision.half import HalfType, nodes_kept_in_fp32, save, to_half


def write_half(source: Path, target: Path, half: HalfType) -> dict[str, str]:
    """Write the graph of ``source`` with its typed nodes in half precision; the nodes that stay, and why."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    kept = nodes_kept_in_fp32(model, half)
    to_half(model, half, keep=kept)
    save(model, target)
    return kept
