"""Build networks without weights and fill them from state dicts."""

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
# The largest network that is built in memory has a gigabyte. A checkpoint of a few kilobytes can name a larger one.
_MOST_PARAMETERS = 1 << 28


def on_meta(build: Callable[[], Network]) -> Network:
    """Build a network on torch's device ``meta``, where it has names and shapes and takes no memory."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # initialising nothing is what is wanted here
        return build()


def unfilled(build: Callable[[], Network], whole: Callable[[], nn.Module] | None = None) -> Network:
    """Build a network on torch's device ``meta``, where its weights take no memory yet.

    A network that computes buffers instead of storing them (an anti-aliasing filter) is built in memory, because no
    state dict would fill the buffers.

    Args:
        build: Makes the network.
        whole: Makes the whole network, for a ``build`` that returns only a part.

    Raises:
        CheckpointError: The network would be built in memory and is too large.
    """
    network = on_meta(build)
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    if not computed:
        return network
    count = sum(one.numel() for one in (network if whole is None else on_meta(whole)).parameters())
    if count > _MOST_PARAMETERS:
        raise CheckpointError(
            f"the backbone that the checkpoint names has {count} parameters, and a network of its kind may have "
            f"{_MOST_PARAMETERS}, since it is built before its weights are known. Check the name, and give another one "
            "with --set backbone=NAME."
        )
    return build()


def fill(
    module: nn.Module,
    tensors: Mapping[str, NDArray[np.generic]],
    what: str,
    *,
    unused: Collection[str] = (),
) -> None:
    """Give a module the weights of a state dict. The module and the state dict share memory where possible.

    Args:
        module: A module in memory or on device ``meta``.
        tensors: The weights by the module's own names.
        what: The module's description for messages.
        unused: Further names that ``tensors`` may have, whose tensors are left out.

    Raises:
        CheckpointError: A tensor is missing, unknown or of the wrong shape. The message names the tensor.
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
