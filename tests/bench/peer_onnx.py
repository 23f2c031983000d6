"""Write anomalib's own ONNX of a checkpoint that anomalib did not write, for the parity table.

    PYTHONPATH=tests .venv-peer/bin/python tests/bench/peer_onnx.py FAMILY SIZE CHECKPOINT FOLDER

Runs in an environment with anomalib 2.7 and without FlowEdge. FAMILY is cflow, fastflow, uflow or csflow; SIZE the
input's side in pixels. Leaves ``model.onnx`` (and ``model.onnx.data``) in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from anomalib.models import Cflow, Csflow, Fastflow, Uflow
from anomalib.models.image.csflow import torch_model as csflow_torch

from bench.settled import settle_post_processor

MODELS: Mapping[str, Callable[..., Any]] = {
    "cflow": lambda **kwargs: Cflow(**kwargs, pre_trained=False),
    "fastflow": lambda **kwargs: Fastflow(**kwargs, pre_trained=False),
    "uflow": Uflow,
    "csflow": Csflow,
}
# Kept twice (CS-Flow's whole network besides the pruned one), counters, and what nobody has fitted.
UNNEEDED = (".backbone.", "num_batches_tracked", "post_processor.")


def without_downloads() -> None:
    """Keep U-Flow and CS-Flow from downloading backbone weights, which the checkpoint replaces."""
    create = timm.create_model
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False})
    csflow_torch.efficientnet_b5 = lambda weights: torchvision.models.efficientnet_b5(weights=None)


def main() -> None:
    family, size, checkpoint, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    without_downloads()
    saved = torch.load(checkpoint, weights_only=True, mmap=True)
    model = MODELS[family](**saved["hyper_parameters"])
    missing, unexpected = model.load_state_dict(saved["state_dict"], strict=False)
    left_over = [name for name in (*missing, *unexpected) if not any(part in name for part in UNNEEDED)]
    if left_over:
        raise SystemExit(f"{checkpoint} is not anomalib's {family}: {left_over[:5]}")
    settle_post_processor(model.eval(), (size, size))
    folder.mkdir(exist_ok=True)
    written = model.to_onnx(folder, input_size=(size, size))
    for file in written.parent.glob(f"{written.name}*"):
        file.replace(folder / file.name)  # the graph names its file of weights: both keep their names


if __name__ == "__main__":
    main()
