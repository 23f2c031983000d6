"""Networks without weights, and the filling of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flowedge.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)

_COUNTER = "num_batches_tracked"


def unfilled(build: Callable[[], Network]) -> Network:
    """A network that takes no memory for weights yet: on torch's device ``meta``.

    One that computes buffers instead of storing them (an anti-aliasing filter) is built for real, because nothing
    would fill those.
    """
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # initialising nothing is what is wanted here
        network = build()
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return build() if computed else network


def fill(
    module: nn.Module,
    tensors: Mapping[str, NDArray[np.generic]],
    what: str,
    *,
    unused: Collection[str] = (),
) -> None:
    """Give a module the weights of a state dict, without a copy where possible: they may share memory.

    Args:
        module: Real or on device ``meta``.
        tensors: By the module's own names.
        what: What the module is, for messages.
        unused: Names that may be given besides the module's, and are left out.

    Raises:
        CheckpointError: A tensor is missing, unknown or of the wrong shape; the message names it.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}
    given = {key: value for key, value in tensors.items() if key not in unused and not key.endswith(_COUNTER)}
    for problem, keys in (
        ("lacks", wanted.keys() - given.keys()),
        ("has unknown", given.keys() - wanted.keys()),
    ):
        if keys:
            shown = ", ".join(sorted(keys)[:3]) + (" …" if len(keys) > 3 else "")
            raise CheckpointError(
                f"{what} {problem} {len(keys)} of its tensors: {shown}. "
                "Check that the network's name is right (--set backbone=NAME)."
            )
    state = {}
    for key, value in given.items():
        if tuple(value.shape) != tuple(wanted[key].shape):
            raise CheckpointError(
                f"{what}: tensor {key} has shape {tuple(value.shape)}, expected {tuple(wanted[key].shape)}. "
                "Check that the network's name is right (--set backbone=NAME)."
            )
        state[key] = torch.from_numpy(np.ascontiguousarray(value))
    module.load_state_dict(state, strict=False, assign=True)
