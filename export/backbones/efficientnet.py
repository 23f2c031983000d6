"""Run the EfficientNet-B5 of efficientnet_pytorch in torchvision's modules: translate its names and pad as it does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision import models

from flowedge.export.backbones.weights import unfilled

Value = TypeVar("Value")

# efficientnet_pytorch pads any image as TensorFlow's SAME pads one of 456 px. For each convolution of stride 2 (stem,
# stages 2, 3, 4 and 6) a pair gives the pixels before and after. Version 0.6 takes every map to be 456 px wide.
STATIC_PADDING: Final[Mapping[str, Mapping[str, tuple[int, int]]]] = MappingProxyType(
    {
        "static_0.7": MappingProxyType(
            {
                "features.0.0": (0, 1),
                "features.2.0.block.1.0": (0, 1),
                "features.3.0.block.1.0": (1, 2),
                "features.4.0.block.1.0": (1, 1),
                "features.6.0.block.1.0": (2, 2),
            }
        ),
        "static_0.6": MappingProxyType(
            {
                "features.0.0": (0, 1),
                "features.2.0.block.1.0": (0, 1),
                "features.3.0.block.1.0": (1, 2),
                "features.4.0.block.1.0": (0, 1),
                "features.6.0.block.1.0": (1, 2),
            }
        ),
    }
)


def torchvision_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state dict of efficientnet_pytorch's B5 under torchvision's names. Unknown names stay as they are."""
    modules = _module_names()
    renamed = {}
    for name, value in weights.items():
        module, _, part = name.rpartition(".")
        renamed[f"{modules[module]}.{part}" if module in modules else name] = value
    return renamed


def pad_statically(network: nn.Module, version: str) -> None:
    """Pad the convolutions of stride 2 as efficientnet_pytorch does.

    Args:
        network: A filled EfficientNet-B5 by torchvision's names, at least up to ``features.6``.
        version: A key of ``STATIC_PADDING``.
    """
    for name, (before, after) in STATIC_PADDING[version].items():
        convolution = network.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        convolution.padding = (0, 0)
        padding = nn.ZeroPad2d((before, after, before, after))
        network.set_submodule(name, nn.Sequential(padding, convolution))


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm into the convolution before it. The result is exact up to rounding.

    The tracer would fold them too, but once for each image size, so that the file would hold three sets of weights.
    """
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            before = f"{name.rpartition('.')[0]}.0"
            convolution = network.get_submodule(before)
            assert isinstance(convolution, nn.Conv2d)
            network.set_submodule(before, fuse_conv_bn_eval(convolution, norm))
            network.set_submodule(name, nn.Identity())


def _module_names() -> dict[str, str]:
    """Return pairs of names for each module with weights: efficientnet_pytorch's and torchvision's."""
    names = {
        "_conv_stem": "features.0.0",
        "_bn0": "features.0.1",
        "_conv_head": "features.8.0",
        "_bn1": "features.8.1",
        "_fc": "classifier.1",
    }
    network = unfilled(models.efficientnet_b5)
    blocks = [name for name, module in network.named_modules() if name.endswith(".block")]
    for number, block in enumerate(blocks):
        depthwise = (
            len(list(network.get_submodule(block).children())) - 3
        )  # 0 in the stage that does not expand
        theirs = f"_blocks.{number}"
        if depthwise:
            names[f"{theirs}._expand_conv"] = f"{block}.0.0"
            names[f"{theirs}._bn0"] = f"{block}.0.1"
        names[f"{theirs}._depthwise_conv"] = f"{block}.{depthwise}.0"
        names[f"{theirs}._bn1"] = f"{block}.{depthwise}.1"
        names[f"{theirs}._se_reduce"] = f"{block}.{depthwise + 1}.fc1"
        names[f"{theirs}._se_expand"] = f"{block}.{depthwise + 1}.fc2"
        names[f"{theirs}._project_conv"] = f"{block}.{depthwise + 2}.0"
        names[f"{theirs}._bn2"] = f"{block}.{depthwise + 2}.1"
    return names
