"""Write a CFLOW checkpoint and ONNX files of it with anomalib, for the benchmark.

    PYTHONPATH=tests .venv-peer/bin/python tests/bench/peer_cflow.py resnet18 FOLDER        a seeded random model
    PYTHONPATH=tests .venv-peer/bin/python tests/bench/peer_cflow.py path/model.ckpt FOLDER  an existing checkpoint

Runs in an environment with anomalib 2.7 and without FlowEdge. Leaves in the folder ``model.ckpt``, ``model.onnx``
(with ``model.onnx.data``; what anomalib 2.7.0 writes) and ``torchscript.onnx``: the same module by the TorchScript
exporter with a dynamic batch, as the releases before 2.7.0 wrote it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models import Cflow

from bench.settled import settle_batch_norms, settle_post_processor

INPUT_SIZE = (256, 256)
SEED = 7


def random_cflow(network: str) -> Any:
    """Make an untrained model without neutral values, whose levels are spread as those of a trained one.

    The blocks' scales, offsets and biases are moved a little; `settle_batch_norms` does the backbone.
    """
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    model = Cflow(backbone=network, layers=("layer2", "layer3", "layer4"), pre_trained=False)
    with torch.no_grad():
        settle_batch_norms(model.model.encoder, INPUT_SIZE)
        for name, tensor in model.model.decoders.named_parameters():
            if name.endswith(("global_scale", "global_offset", "bias")):
                tensor += 0.05 * torch.randn_like(tensor)
    settle_post_processor(model.eval(), INPUT_SIZE)
    return model


def save_checkpoint(model: Any, path: Path) -> None:
    """Write what Lightning's trainer writes for an anomalib model, without the trainer's own state."""
    checkpoint = {
        "epoch": 0,
        "global_step": 0,
        "state_dict": model.state_dict(),
        "hparams_name": "kwargs",
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def main() -> None:
    source, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "model.ckpt"
    if source.endswith(".ckpt"):
        shutil.copyfile(source, checkpoint)
        checkpoint.chmod(0o644)
        model = Cflow.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    else:
        model = random_cflow(source)
        save_checkpoint(model, checkpoint)
    written = model.to_onnx(folder, input_size=INPUT_SIZE)
    for file in written.parent.glob(f"{written.name}*"):
        file.replace(folder / file.name)
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, *INPUT_SIZE),),
        str(folder / "torchscript.onnx"),
        opset_version=14,
        dynamo=False,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch_size"}},
    )


if __name__ == "__main__":
    main()
