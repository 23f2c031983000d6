"""Train with anomalib, save a checkpoint and record anomalib's answers, for the parity test.

    .venv-peer/bin/python tests/parity/peer_anomalib.py FOLDER cflow fastflow …

Runs in an environment with anomalib 2.7 and without FlowEdge. Leaves in ``FOLDER/FAMILY``, beside the synthetic
photographs that it was trained on and is asked about:

``model.ckpt``
    Saved by the engine after one epoch, with the thresholds and ranges of its validation.
``answers.npz``
    For each photograph of ``asked/``, in the order of ``names``: ``x_{i}``, the model's input ``(3, H, W)``;
    ``raw_score_{i}`` and ``raw_map_{i} (H, W)``, what the model answers to it alone; ``score_{i}``, ``map_{i}``,
    ``label_{i}`` and ``mask_{i}``, what the engine predicts from the file.
``export.pt``
    The same model as anomalib's "torch" export: the whole module, pickled.
``inner.pt``
    The state dict of the network alone.

Nothing is downloaded: networks get random weights.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from PIL import Image

SEED: Final = 7
# The side of the network's input in pixels. CS-Flow takes multiples of 128.
SIZES: Final = {"cflow": (64, 96), "fastflow": (64, 64), "uflow": (64, 64), "csflow": (128, 256)}
# The sizes of the photographs to judge: larger and smaller than the input, square and not.
ASKED: Final = ((80, 120), (64, 64), (50, 40), (200, 130))


def photograph(seed: int, size: tuple[int, int], *, defect: bool = False) -> tuple[Image.Image, Image.Image]:
    """Make a soft random texture, with a bright square if it has a defect, and the defect's mask."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 190, (9, 11, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).copy()
    mask = np.zeros(size, np.uint8)
    if defect:
        mask[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 255
        image[mask > 0] = (190, 180, 110)
    return Image.fromarray(image), Image.fromarray(mask)


def write_photographs(folder: Path) -> None:
    """Write ``good/``, ``good_test/``, ``bad/`` with ``mask/``, and ``asked/``."""
    for name in ("good", "good_test", "bad", "mask", "asked"):
        (folder / name).mkdir()
    for n in range(4):
        photograph(n, (96, 96))[0].save(folder / "good" / f"{n}.png")
    for n in range(3):
        photograph(10 + n, (96, 96))[0].save(folder / "good_test" / f"{n}.png")
        image, mask = photograph(20 + n, (96, 96), defect=True)
        image.save(folder / "bad" / f"{n}.png")
        mask.save(folder / "mask" / f"{n}.png")
    for n, size in enumerate(ASKED):
        photograph(30 + n, size, defect=n % 2 == 1)[0].save(folder / "asked" / f"{n}.png")


def without_downloads() -> mock._patch[Any]:
    """Give networks of timm random weights, even where the caller asks for trained ones."""
    import timm

    return mock.patch("timm.create_model", functools.partial(_untrained, timm.create_model))


def _untrained(create: Any, *arguments: Any, **named: Any) -> Any:
    return create(*arguments, **{**named, "pretrained": False})


def new_model(family: str) -> Any:
    """Make a small model with nothing left at a neutral value."""
    from anomalib.models import Cflow, Csflow, Fastflow, Uflow
    from anomalib.models.image.csflow import torch_model as csflow
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    size = SIZES[family]
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    kind: Any
    settings: dict[str, Any]
    match family:
        case "cflow":
            kind, settings = Cflow, {"pre_trained": False, "coupling_blocks": 4, "clamp_alpha": 1.7}
            settings |= {"backbone": "resnet18", "layers": ("layer1", "layer2", "layer3")}
        case "fastflow":
            kind, settings = Fastflow, {"backbone": "resnet18", "pre_trained": False, "flow_steps": 4}
        case "uflow":
            kind, settings = Uflow, {"backbone": "resnet18", "flow_steps": 2, "affine_clamp": 1.8}
        case _:
            kind, settings = Csflow, {"cross_conv_hidden_channels": 32, "n_coupling_blocks": 3}
    normalise = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    settings["pre_processor"] = PreProcessor(transform=Compose([Resize(size, antialias=True), normalise]))
    with (
        without_downloads(),
        mock.patch.object(csflow, "EfficientNet_B5_Weights", IMAGENET1K_V1=None),
    ):
        model = kind(**settings)
    spread(model, size)
    return model


def spread(model: Any, size: tuple[int, int]) -> None:
    """Give the batch norms weights and statistics of random images, and move what starts at one or zero."""
    inner = model.model
    extractor = getattr(inner, "encoder", None) or inner.feature_extractor
    with torch.no_grad():
        for norm in (module for module in extractor.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.1)
            norm.bias.normal_(0, 0.2)
            settle_on_first_call(norm)
        coarse = torch.rand(8, 3, 12, 12)
        extractor(torch.nn.functional.interpolate(coarse, size, mode="bicubic") * 4 - 2)
        for name, tensor in inner.named_parameters():
            if name.endswith(("global_scale", "global_offset", "gamma0", "gamma1", "gamma2")):
                tensor += 0.1 * torch.randn_like(tensor)


def settle_on_first_call(norm: torch.nn.BatchNorm2d) -> None:
    """Let a batch norm take the statistics of the first batch it sees, also in evaluation mode."""

    def settle(module: Any, inputs: Any) -> None:
        module.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        module.running_var.copy_(inputs[0].var((0, 2, 3)) + 0.01)
        handle.remove()

    handle = norm.register_forward_pre_hook(settle)


def trained(family: str, folder: Path) -> Path:
    """Train one epoch on the photographs, and return the checkpoint that the engine saved."""
    from anomalib.data import Folder
    from anomalib.engine import Engine

    data = Folder(
        name="photographs",
        root=folder,
        normal_dir="good",
        normal_test_dir="good_test",
        abnormal_dir="bad",
        mask_dir="mask",
        val_split_mode="same_as_test",
        train_batch_size=4,
        eval_batch_size=1,
        num_workers=0,
        seed=SEED,
    )
    engine = Engine(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder / "runs",
    )
    engine.fit(new_model(family), datamodule=data)
    return Path(engine.best_model_path)


def answers(family: str, checkpoint: Path, asked: Path) -> dict[str, Any]:
    """Record the answers of the checkpoint's own model to each photograph alone, and save its other forms."""
    from anomalib.data import PredictDataset
    from anomalib.data.utils import read_image
    from anomalib.engine import Engine

    model = new_model(family)
    engine = Engine(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=checkpoint.parent
    )
    predictions = engine.predict(model, dataset=PredictDataset(asked), ckpt_path=checkpoint)
    names = [Path(batch.image_path[0]).name for batch in predictions]
    found: dict[str, Any] = {"names": names}
    model.eval()  # now with the checkpoint's weights
    for n, (name, predicted) in enumerate(zip(names, predictions, strict=True)):
        # This is the engine's transform. A call of the pre-processor would take that of its exports, without antialias.
        x = model.pre_processor.transform(read_image(asked / name, as_tensor=True)[None])
        with torch.no_grad():
            raw = model.model(x)
        found |= {f"x_{n}": x, f"raw_score_{n}": raw.pred_score, f"raw_map_{n}": raw.anomaly_map}
        found |= {f"score_{n}": predicted.pred_score, f"map_{n}": predicted.anomaly_map}
        found |= {f"label_{n}": predicted.pred_label, f"mask_{n}": predicted.pred_mask}
    model.trainer = None  # which holds the data
    for module in model.modules():
        module._forward_pre_hooks.clear()  # of norms that were never called
    model.to_torch(checkpoint.parent / "torch").replace(checkpoint.with_name("export.pt"))
    torch.save(model.model.state_dict(), checkpoint.with_name("inner.pt"))
    return found


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    for family in sys.argv[2:]:
        folder = Path(sys.argv[1]) / family
        folder.mkdir(parents=True)
        write_photographs(folder)
        checkpoint = trained(family, folder).replace(folder / "model.ckpt")
        found = answers(family, checkpoint, folder / "asked")
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in found.items()}
        np.savez(folder / "answers.npz", **arrays)


if __name__ == "__main__":
    main()
