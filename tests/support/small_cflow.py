"""Write a small CFLOW checkpoint as anomalib 2.7 does, of real FrEIA and timm modules, which exports in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import FrEIA.framework
import FrEIA.modules
import numpy as np
import timm
import torch
from torch import nn

LAYERS = {"layer1": 64, "layer2": 128}
BLOCKS = 2
CONDITION = 16
IMAGE_SIZE = (64, 64)


def small_cflow_checkpoint(seed: int = 0) -> dict[str, Any]:
    """Make a CFLOW with random weights on two layers of a resnet18, with two blocks on each, for 64x64 pixels."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    encoder = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2))
    state = {f"model.encoder.feature_extractor.{k}": v for k, v in encoder.state_dict().items()}
    for level, channels in enumerate(LAYERS.values()):
        state |= {f"model.decoders.{level}.{k}": v for k, v in _decoder(channels).state_dict().items()}
    transforms = "torchvision.transforms.v2."
    resize = {
        "size": list(IMAGE_SIZE),
        "interpolation": "bilinear",
        "max_size": None,
        "antialias": True,
    }
    normalise = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "inplace": False}
    steps = [
        {"class_path": f"{transforms}Resize", "init_args": resize},
        {"class_path": f"{transforms}Normalize", "init_args": normalise},
    ]
    return {
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "backbone": "resnet18",
            "layers": list(LAYERS),
            "condition_vector": CONDITION,
            "coupling_blocks": BLOCKS,
            "clamp_alpha": 1.9,
            "permute_soft": False,
        },
        "anomalib_components_enabled": {"pre_processor": True, "post_processor": True},
        "anomalib_pre_processor_config": {
            "transform": {"class_path": f"{transforms}Compose", "init_args": {"transforms": steps}}
        },
    }


def write_small_cflow(path: Path, seed: int = 0) -> Path:
    """Write the checkpoint to a file."""
    torch.save(small_cflow_checkpoint(seed), path)
    return path


def _decoder(channels: int) -> nn.Module:
    def subnet(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))

    decoder: nn.Module = FrEIA.framework.SequenceINN(channels)
    for _ in range(BLOCKS):
        decoder.append(  # type: ignore[operator]
            FrEIA.modules.AllInOneBlock,
            cond=0,
            cond_shape=(CONDITION,),
            subnet_constructor=subnet,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
        )
    return decoder
