"""A half-precision graph without a bundle around it."""

from __future__ import annotations

from pathlib import Path

import onnx

from flowedge.calibration.precision.half import HalfType, islands, save, to_half


def write_half(source: Path, target: Path, half: HalfType) -> dict[str, str]:
    """Write the graph of ``source`` with its typed nodes in half precision; the nodes that stay, and why."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    kept = islands(model, half)
    to_half(model, half, keep=kept)
    save(model, target)
    return kept
