"""Count inside the graph how many latents of each window exceed a threshold.

The windowed form of U-Flow's a-contrario test needs the number of ``z squared >= tau`` over all channels of a window
around each pixel (Tailanian, Pardo and Musé, JMIV 2024). Counts are whole numbers below 2**24, so float32 sums are
exact in any order. A mean over the window would not be exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowedge.errors import ExportError
from flowedge.export.graph import ir
from flowedge.export.graph.layers import parameter
from flowedge.manifest import NfaOutputs
from flowedge.runtime.nfa import exceedance_threshold, window_sides


def counts_of(model: ir.FlowModel, nfa: NfaOutputs) -> nn.ModuleList:
    """Build a module per level from the latent ``(N, C, h, w)`` to its counts ``(N, 1, h, w)``.

    Raises:
        ExportError: A level is too small for the reflection of its border in a window.
    """
    sides = window_sides(nfa.window, len(model.levels))
    for number, (level, side) in enumerate(zip(model.levels, sides, strict=True)):
        if min(level.height, level.width) <= side // 2:
            raise ExportError(
                f"level {number} is {level.height}x{level.width}, too small for a window of {side}x{side}. "
                "Export without --nfa, or with a larger --image-size."
            )
    threshold = exceedance_threshold(nfa.probability)
    return nn.ModuleList(
        _Count(level, side, threshold) for level, side in zip(model.levels, sides, strict=True)
    )


class _Count(nn.Module):
    """Count the exceedances of one level in a window of ``side`` pixels around each pixel."""

    limit: Tensor

    def __init__(self, level: ir.Level, side: int, threshold: float) -> None:
        super().__init__()
        limit = np.full((1, 1, 1, 1), threshold)
        if level.latent_scale is not None:
            # The stream holds z / scale, so the limit is tau / scale squared. A scale of zero drops the channel: its
            # limit is infinity, which only an overflow reaches.
            with np.errstate(divide="ignore"):
                limit = threshold / level.latent_scale.astype(np.float64)[None, :, None, None] ** 2
        self.register_buffer("limit", torch.from_numpy(limit.astype(np.float32)))
        self._half = side // 2
        self.window = parameter(np.ones((1, 1, side, side), np.float32))

    def forward(self, stream: Tensor) -> Tensor:
        hits = (stream * stream >= self.limit).to(stream.dtype).sum(1, keepdim=True)
        return functional.conv2d(functional.pad(hits, (self._half,) * 4, mode="reflect"), self.window)
