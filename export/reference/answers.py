"""Declare the interface of a reference network, and name its answers as the graph's outputs are named."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowedge.manifest import NfaOutputs
from flowedge.runtime.nfa import exceedance_counts, window_sides


class ReferenceNetwork(nn.Module):
    """A checkpoint in FrEIA's and timm's own modules, without any pass. ``forward(image)`` gives the levels."""

    def answer(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the levels ``(N, 1, h, w)`` and their latents ``(N, C, h, w)``, from fine to coarse."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.answer(image)[0]

    def latents(self, image: Tensor) -> list[Tensor]:
        """Compute the latent z ``(N, C, h, w)`` of each level."""
        return self.answer(image)[1]


def reference_answers(
    reference: ReferenceNetwork, images: Iterable[NDArray[np.float32]], nfa: NfaOutputs | None
) -> dict[str, NDArray[np.float32]]:
    """Run a reference network on images, and name its answers as the graph's outputs are named.

    Energies and counts are computed in NumPy on the latents.

    Args:
        reference: The network, which is run once per image.
        images: N network inputs, each ``(3, H, W)``, which are run one by one.
        nfa: The outputs beside the levels, and the numbers that define the counts. Without it the answers are
            the levels alone.

    Returns:
        ``level_i``, with ``nfa`` also ``count_i``, and ``energy_i`` where ``nfa.energies`` is true. Each is
        ``(N, 1, h, w)`` float32.
    """
    levels, latents = [], []
    with torch.inference_mode():
        for image in images:
            given_levels, given_latents = reference.answer(torch.from_numpy(image)[None])
            levels.append(given_levels)
            latents.append([] if nfa is None else given_latents)
    named = {f"level_{n}": torch.cat(level).numpy() for n, level in enumerate(zip(*levels, strict=True))}
    if nfa is None:
        return named
    joined = [torch.cat(level).numpy() for level in zip(*latents, strict=True)]
    if nfa.energies:
        named |= {f"energy_{n}": np.square(z).sum(1, keepdims=True) for n, z in enumerate(joined)}
    sides = window_sides(nfa.window, len(joined))
    for n, (z, side) in enumerate(zip(joined, sides, strict=True)):
        named[f"count_{n}"] = np.stack([exceedance_counts(one, side, nfa.probability)[None] for one in z])
    return {name: answer.astype(np.float32) for name, answer in named.items()}
