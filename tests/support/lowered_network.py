"""Run the network of a checkpoint after the passes in PyTorch, which takes a tenth of an export's time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowedge.export.graph.emit import DetectorModule
from flowedge.export.graph.onnx_export import output_names
from flowedge.export.graph.passes import lower
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.manifest import Preprocessing


def lowered_answers(
    checkpoint: Path, options: ExportOptions, images: NDArray[np.float32]
) -> tuple[dict[str, NDArray[Any]], Preprocessing]:
    """Return the answers of the module that an export traces, and the checkpoint's preprocessing.

    Args:
        checkpoint: The checkpoint.
        options: The options of the export.
        images: ``(N, 3, H, W)``, each of which the network gets alone.
    """
    read = read_model(checkpoint, options)
    model = lower(read.model)
    network = DetectorModule(read.backbone, model).eval()
    with torch.inference_mode():
        each = [[part.numpy() for part in network(torch.from_numpy(one[None]))] for one in images]
    parts = (np.concatenate(part) for part in zip(*each, strict=True))
    return dict(zip(output_names(model), parts, strict=True)), read.preprocessing
