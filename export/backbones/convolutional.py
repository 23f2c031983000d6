"""Build convolutional feature extractors, without the layers after the last one that a flow reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import timm
from timm.models import EfficientNet
from torch import Tensor, nn
from torchvision import models

from flowedge.errors import CheckpointError
from flowedge.export.backbones.weights import on_meta, unfilled

_STRIDE: Final = (
    32  # pixels of the image per feature of EfficientNet-B5, the one network that runs at several sizes
)
# The networks by the names that published state dicts have.
_TORCHVISION: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType(
    {
        "efficientnet_b5": models.efficientnet_b5,
        "mobilenet_v3_large": lambda: models.mobilenet_v3_large().features,
        "mobilenet_v3_small": lambda: models.mobilenet_v3_small().features,
    }
)


class StageFeatures(nn.Module):
    """Give the features of whole stages of a network in its order, as timm's ``features_only`` does.

    Attributes:
        network: The network up to the last tap, whose tensors have the names of anomalib's files.
        unused: Names of tensors of the whole network that are not in ``network``.
    """

    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        self.network = unfilled(lambda: _stages(name, out_indices=sorted(stages)), lambda: _of_timm(name))
        whole = on_meta(lambda: _of_timm(name))
        self.unused = whole.state_dict().keys() - self.network.state_dict().keys()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features ``(N, C, h, w)`` of images ``(N, 3, H, W)``, one for each tap."""
        return list(self.network(image))


class StackFeatures(nn.Module):
    """Give the outputs of any modules of a network that is one stack, for taps within a residual block.

    Attributes:
        network: The part of the network that the taps need, under its own names.
        unused: Names of tensors of the whole network that are not in ``network``.
    """

    def __init__(self, name: str, naming: str, taps: Sequence[str]) -> None:
        super().__init__()
        network = _whole(name, naming)
        stack = _stack(network)
        owners = {tap: [layer for layer in stack if f"{tap}.".startswith(f"{layer}.")] for tap in taps}
        missing = [tap for tap in taps if not owners[tap] or tap not in dict(network.named_modules())]
        if missing:
            raise unknown_taps(name, missing, stage_names(name) if naming == "timm" else stack)
        self._taps = tuple(taps)
        self._layers = stack[: 1 + max(stack.index(layer) for tap in taps for layer in owners[tap])]
        whole = network.state_dict().keys()
        _drop_all_but(network, self._layers)
        self.network = network
        self.unused = whole - network.state_dict().keys()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return features ``(N, C, h, w)`` of images ``(N, 3, H, W)``, one for each tap in their order."""
        found: dict[str, Tensor] = {}

        def keep(tap: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[tap] = output

        hooks = [
            self.network.get_submodule(tap).register_forward_hook(partial(keep, tap)) for tap in self._taps
        ]
        try:
            for layer in self._layers:
                image = self.network.get_submodule(layer)(image)
        finally:
            for hook in hooks:
                hook.remove()
        return [found[tap] for tap in self._taps]


class Pyramid(nn.Module):
    """Run one extractor on an image at several sizes. Each size takes every second pixel of the size before."""

    def __init__(self, features: nn.Module, scales: int) -> None:
        super().__init__()
        self.features = features
        self._scales = scales

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of images ``(N, 3, H, W)``: those of the whole image, then those of the smaller ones.

        Raises:
            CheckpointError: The image's sides are not multiples of the coarsest features' stride.
        """
        height, width = image.shape[-2:]
        stride = _STRIDE * 2 ** (self._scales - 1)
        if height % stride or width % stride:
            raise CheckpointError(
                f"the image is {height}x{width} pixels; on {self._scales} scales its sides must be multiples of "
                f"{stride}. Give others with --image-size."
            )
        return [
            feature
            for scale in range(self._scales)
            for feature in self.features(image[..., :: 2**scale, :: 2**scale])
        ]


def convolutional_features(name: str, naming: str, taps: Sequence[str]) -> StageFeatures | StackFeatures:
    """Build the extractor for these taps, without its weights.

    Raises:
        CheckpointError: The network or a tap is unknown.
    """
    stages = stage_names(name) if naming == "timm" else []
    if set(taps) <= set(stages):
        return StageFeatures(name, [stages.index(tap) for tap in taps])
    return StackFeatures(name, naming, taps)


def stage_names(name: str) -> list[str]:
    """Return the stages of a timm network by the names of their modules, fine to coarse.

    Raises:
        CheckpointError: timm does not know the network, or it has no stages.
    """
    try:
        probe: Any = on_meta(lambda: _stages(name))
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"timm cannot build the backbone {name!r} as a feature extractor: {error}. "
            "Name the network with --set backbone=NAME."
        ) from error
    return list(probe.feature_info.module_name())


def pad_by_reflection(module: nn.Module) -> None:
    """Make every convolution that pads do so by reflection, as the official CFLOW's and MSFlow's ResNets do."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and any(conv.padding):
            conv.padding_mode = "reflect"


def unknown_taps(name: str, taps: Sequence[str], known: Sequence[str]) -> CheckpointError:
    """Make the error for layers that a network does not have."""
    return CheckpointError(
        f"the backbone {name} has no layers named {', '.join(taps)}; it has {', '.join(known)}. "
        "Name the layers with --set layers=a,b,c."
    )


def _stages(name: str, **options: Any) -> nn.Module:
    network: nn.Module = timm.create_model(
        name, pretrained=False, features_only=True, exportable=True, **options
    )
    return network


def _of_timm(name: str) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=False, exportable=True)
    return network


def _whole(name: str, naming: str) -> nn.Module:
    if naming == "timm":
        return unfilled(lambda: _of_timm(name))
    if name not in _TORCHVISION:
        raise CheckpointError(
            f"the backbone {name!r} is none of torchvision's that are known here: {', '.join(_TORCHVISION)}. "
            "Name the network with --set backbone=NAME."
        )
    return unfilled(_TORCHVISION[name])


def _stack(network: nn.Module) -> list[str]:
    """Return the names of the layers of a network that runs them one after the other, or none for another network."""
    match network:
        case EfficientNet():
            return ["conv_stem", "bn1", *(f"blocks.{index}" for index in range(len(network.blocks)))]
        case models.EfficientNet():
            return [f"features.{index}" for index in range(len(network.features))]
        case nn.Sequential():
            return [str(index) for index in range(len(network))]
        case _:
            return []


def _drop_all_but(network: nn.Module, layers: Sequence[str]) -> None:
    prefixes = tuple(f"{layer}." for layer in layers)
    for name, module in list(network.named_modules()):
        if next(module.parameters(recurse=False), None) is not None and not f"{name}.".startswith(prefixes):
            network.set_submodule(name, nn.Identity())
