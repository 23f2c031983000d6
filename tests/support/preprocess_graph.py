"""Write the preprocessing of frames as a graph of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from flowedge.export.graph.frame_graph import Preprocess
from flowedge.manifest import Preprocessing


def write_preprocess(preprocessing: Preprocessing, frame: tuple[int, int], target: Path) -> Path:
    """Write a graph that turns ``frame (N, H, W, 3)`` uint8 into the network's input."""
    torch.onnx.export(
        Preprocess(preprocessing, frame).eval(),
        (torch.zeros(2, *frame, 3, dtype=torch.uint8),),
        str(target),
        dynamo=True,
        verbose=False,
        opset_version=18,
        input_names=["frame"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    return target
