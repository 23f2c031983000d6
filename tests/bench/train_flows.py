"""Train the flow of a small FastFlow, U-Flow, MSFlow or CS-Flow in its reference modules, on good photographs.

A checkpoint begins as ``full_size`` writes it, with random weights. The reference network, of FrEIA's own modules, is
trained by maximising the likelihood of the photographs' features, which the frozen backbone gives once. Trained weights
go back into the file. Every tensor of a new file is random, so a weight is found in it by its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.full_size import BACKBONE, FullSize, write_checkpoint
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.export.reference.answers import ReferenceNetwork
from flowedge.export.reference.csflow import CsflowReference, TwoSidedCoupling
from flowedge.export.reference.fastflow import FastflowReference
from flowedge.export.reference.msflow import MsflowReference
from flowedge.export.reference.uflow import UflowReference
from flowedge.manifest import Preprocessing
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.frames.preprocess import Preprocessor

SEED = 7
ROWS = 8  # images of one step of Adam
_LEARNED = ("weight", "bias", "global_scale", "global_offset")
# Norms of features are left as they are: the likelihood would only shrink the features. So is the backbone.
_FROZEN = ("backbone.", "norms.")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of training: mean negative log-likelihood per dimension without its constant, in nats."""

    steps: int
    first_nll: float
    last_nll: float


def options_of(model: FullSize, folder: Path) -> ExportOptions:
    """Return the options with which a model's file in a folder is exported."""
    weights = folder / BACKBONE if model.has_backbone_file else None
    return ExportOptions(image_size=(model.size, model.size), backbone_weights=weights)


def train_flow(
    model: FullSize, images: Sequence[Path], folder: Path, *, epochs: int, learning_rate: float = 1e-3
) -> Trained:
    """Train a model, and write its file into the folder.

    Args:
        model: The model. CFLOW is trained by `flowedge.export.demo.train` instead.
        images: Good images.
        folder: Where ``full_size`` puts the file, and the backbone's where it is apart.
        epochs: The number of times that each image is seen.
        learning_rate: The learning rate of Adam at the start, which falls to zero along a cosine.
    """
    path = write_checkpoint(model, folder)
    read = read_model(path, options_of(model, folder))
    reference = read.reference_network()
    file = torch.load(path, map_location="cpu", weights_only=True)
    stored = {_bytes_of(tensor): tensor for tensor in _tensors_in(file)}
    learned = [
        parameter.requires_grad_(True)
        for name, parameter in reference.named_parameters()
        if name.endswith(_LEARNED) and not name.startswith(_FROZEN)
    ]
    places = [stored[_bytes_of(parameter)] for parameter in learned]
    features = features_of(reference, images, read.preprocessing)
    losses = _fit(reference, features, learned, epochs, learning_rate)
    with torch.no_grad():
        for place, parameter in zip(places, learned, strict=True):
            place.copy_(parameter.reshape(place.shape))
    torch.save(file, path)
    per_epoch = len(losses) // epochs
    return Trained(
        steps=len(losses),
        first_nll=sum(losses[:per_epoch]) / per_epoch,
        last_nll=sum(losses[-per_epoch:]) / per_epoch,
    )


def features_of(
    reference: ReferenceNetwork, images: Sequence[Path], preprocessing: Preprocessing
) -> list[Tensor]:
    """Return the features of each level, fine to coarse, ``(len(images), C, h, w)`` float32."""
    preprocess = Preprocessor(preprocessing)
    backbone = reference.backbone
    assert isinstance(backbone, nn.Module)
    with torch.no_grad():
        found = [backbone(torch.from_numpy(preprocess(read_image(path)))[None]) for path in images]
    return [torch.cat(level) for level in zip(*found, strict=True)]


def _fit(
    reference: ReferenceNetwork,
    features: Sequence[Tensor],
    parameters: Sequence[Tensor],
    epochs: int,
    learning_rate: float,
) -> list[float]:
    """Train in place, and return the loss of every step."""
    torch.manual_seed(SEED)
    images = len(features[0])
    order = [rows for _ in range(epochs) for rows in torch.split(torch.randperm(images), ROWS)]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(order))
    losses: list[float] = []
    for rows in order:
        loss = negative_log_likelihood(reference, [level[rows] for level in features])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def negative_log_likelihood(reference: ReferenceNetwork, features: list[Tensor]) -> Tensor:
    """Return the negative log-likelihood, mean over images and dimensions, in nats without the constant."""
    match reference:
        case FastflowReference():
            flowed = [
                flow(norm(feature))
                for feature, norm, flow in zip(features, reference.norms, reference.flows, strict=True)
            ]
            latents, log_dets = [z for z, _ in flowed], [log_det for _, log_det in flowed]
        case UflowReference():
            latents, log_dets = _uflow(reference, features)
        case MsflowReference():
            latents, log_dets = _msflow(reference, features)
        case CsflowReference():
            latents, log_dets = _csflow(reference, features)
        case _:
            raise TypeError(f"{type(reference).__name__} is not trained here")
    energy = torch.stack([z.square().flatten(1).sum(1) for z in latents]).sum(0)
    dimensions = sum(z[0].numel() for z in latents)
    loss: Tensor = (0.5 * energy - torch.stack(log_dets).sum(0)).mean() / dimensions
    return loss


def _uflow(reference: UflowReference, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    normed = [norm(feature) for feature, norm in zip(features, reference.norms, strict=True)]
    latents, log_dets = [], []
    stream = normed.pop()
    for flow, ascent in zip(reference.flows, reference.ascents, strict=False):
        done, log_det = flow(stream)
        z, stream = ascent(done, normed.pop())
        latents.append(z)
        log_dets.append(log_det)
    z, log_det = reference.flows[-1](stream)
    return [*latents, z], [*log_dets, log_det]


def _msflow(reference: MsflowReference, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    latents, log_dets = [], []
    for feature, flow, condition in zip(features, reference.flows, reference.conditions, strict=True):
        conditions = () if condition is None else (condition.expand(len(feature), -1, -1, -1),)
        z, log_det = flow(reference.pool(feature), conditions)
        latents.append(z)
        log_dets.append(log_det)
    coupling = reference.fusion.coupling
    with LogDets(coupling) as fused:
        latents = reference.fusion(latents)
    return latents, [*log_dets, *fused.found]


def _csflow(reference: CsflowReference, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    log_dets: list[Tensor] = []
    for block in reference.blocks:
        with LogDets(block.coupling) as moved:
            features = block(features)
        log_dets += moved.found
    return features, log_dets


class LogDets:
    """Listens to a coupling's nets and notes what each scale adds to the log-determinant, ``(N,)``."""

    def __init__(self, coupling: Tensor | nn.Module) -> None:
        assert isinstance(coupling, TwoSidedCoupling)
        self.found: list[Tensor] = []
        self._clamp = coupling.clamp
        self._handles = [net.register_forward_hook(self._note) for net in (coupling.net1, coupling.net2)]

    def __enter__(self) -> LogDets:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, _net: nn.Module, _inputs: object, output: list[tuple[Tensor, Tensor]]) -> None:
        for scale, _shift in output:
            log_scale = self._clamp * 0.636 * torch.atan(scale / self._clamp)
            self.found.append(log_scale.flatten(1).sum(1))


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _tensors_in(one)
