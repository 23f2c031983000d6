"""What the graph gives for the number of false alarms, computed in NumPy on a reference's latents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flowedge.manifest import NfaOutputs
from flowedge.runtime.nfa import exceedance_counts, window_sides


def nfa_answers(
    reference: nn.Module, images: Iterable[NDArray[np.float32]], nfa: NfaOutputs
) -> dict[str, NDArray[np.float32]]:
    """The graph's outputs ``energy_i`` (where ``nfa`` says so) and ``count_i``, ``(N, 1, h, w)`` float32 by name.

    Args:
        reference: One of ``flowedge.export.reference``, with a method ``latents``.
        images: N network inputs, each ``(3, H, W)``, taken one by one.
        nfa: Which outputs, and what is counted.
    """
    module: Any = reference
    given = [module.latents(torch.from_numpy(image)[None]) for image in images]
    latents = [torch.cat(level).numpy() for level in zip(*given, strict=True)]
    energies = {f"energy_{n}": np.square(z).sum(1, keepdims=True) for n, z in enumerate(latents)}
    sides = window_sides(nfa.window, len(latents))
    counts = {
        f"count_{n}": np.stack([exceedance_counts(one, side, nfa.probability)[None] for one in z])
        for n, (z, side) in enumerate(zip(latents, sides, strict=True))
    }
    wanted = {**(energies if nfa.energies else {}), **counts}
    return {name: answer.astype(np.float32) for name, answer in wanted.items()}
