"""Make random models as ordinary as trained ones, with torch alone for the peer's environment."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_BATCHES = 4


def settle_batch_norms(network: nn.Module, size: tuple[int, int]) -> None:
    """Give every batch norm weights of its own and the statistics of a few random images.

    As built they are neutral (timm even starts some at zero, which switches whole branches off), and through
    neutral ones the features of a deep network grow or vanish.

    Args:
        network: Any convolutional network on ``(N, 3, H, W)``, which is left in evaluation mode.
        size: ``(height, width)`` of the images, pixels.
    """
    norms = [module for module in network.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    epsilons = [norm.eps for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.train()
            norm.weight.uniform_(0.5, 1.1)
            norm.bias.normal_(0, 0.2)
            norm.eps = 0.1  # while the statistics are taken: nearly constant channels stay small
            norm.momentum = None  # the mean over all images, not a moving one
        for _ in range(_BATCHES):
            coarse = torch.rand(4, 3, 16, 16)
            network(nn.functional.interpolate(coarse, size, mode="bicubic") * 4 - 2)
        for norm, eps in zip(norms, epsilons, strict=True):
            norm.eval()
            assert norm.running_var is not None
            norm.running_var += 0.1
            norm.eps = eps  # what the network's builder sets: a checkpoint does not hold it


def settle_post_processor(model: Any, size: tuple[int, int]) -> None:
    """Give anomalib's post-processor limits that keep the maps of random images between a third and two thirds.

    The limits of a model that was never validated are NaN, and NNCF refuses a graph in which it finds NaN.

    Args:
        model: A model of anomalib in evaluation mode.
        size: ``(height, width)`` of the images, pixels.
    """
    if not bool(torch.isnan(model.post_processor.pixel_min)):
        return
    with torch.no_grad():
        coarse = torch.rand(4, 3, 16, 16)
        maps = model.model(nn.functional.interpolate(coarse, size, mode="bicubic") * 4 - 2).anomaly_map
        low, high = maps.min(), maps.max()
        limits = {"min": 2 * low - high, "max": 2 * high - low, "threshold": (low + high) / 2}
        for name, buffer in model.post_processor.named_buffers():
            kind = name.rpartition("_")[2]
            if kind in limits and bool(torch.isnan(buffer)):
                buffer.copy_(limits[kind])
