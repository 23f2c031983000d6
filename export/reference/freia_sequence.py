"""Build FrEIA's own all-in-one blocks and fill them with the weights of a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from flowedge.export.checkpoints.checkpoint import Checkpoint


class LaterAllInOneBlock(AllInOneBlock):  # type: ignore[misc]
    """FrEIA's block with the clamp ``alpha tanh(a / alpha)`` of its main branch since August 2023."""

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        assert not rev
        a = a * 0.1
        channels = x.shape[1]
        log_scale = self.clamp * torch.tanh(a[:, :channels] / self.clamp)
        return x * torch.exp(log_scale) + a[:, channels:], log_scale.sum(self.sum_dims)


def freia_sequence(
    checkpoint: Checkpoint,
    level: int,
    shape: Sequence[int],
    condition: int,
    subnet: Callable[[int], Callable[[int, int], nn.Module]],
) -> nn.Module:
    """Build the couplings of one level as FrEIA's ``SequenceINN``.

    Args:
        checkpoint: The checkpoint that holds the weights.
        level: The level's number.
        shape: FrEIA's input dimensions, ``(C,)`` or ``(C, H, W)``.
        condition: Number of channels of the condition, 0 for none.
        subnet: A function from a coupling's number to FrEIA's subnet constructor.
    """
    tensors = checkpoint.tensors
    prefix = f"flow.{level}."
    count = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(prefix))
    later = checkpoint.hyperparameters["clamp_variant"] == "tanh_over_alpha"
    flow: Any = SequenceINN(*shape)
    for block in range(count):
        own = {name[len(prefix) + len(str(block)) + 1 :]: value for name, value in tensors.items()
               if name.startswith(f"{prefix}{block}.")}  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flow.append(
                LaterAllInOneBlock if later else AllInOneBlock,
                cond=0 if condition else None,
                cond_shape=(condition, *shape[1:]) if condition else None,
                subnet_constructor=subnet(block),
                affine_clamping=checkpoint.hyperparameters["clamp"],
                global_affine_type="SOFTPLUS",
                permute_soft=False,
                learned_householder_permutation=len(own.get("vk_householder", ())),
            )
        _fill(flow[block], own)
    return flow.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _fill(block: Any, own: dict[str, np.ndarray[Any, Any]]) -> None:
    """Load the tensors of one coupling into FrEIA's block."""
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in own.items()
        if not name.startswith("subnet.")
    }
    # FrEIA stores the global affine and the permutation with an axis of size 1 for each spatial axis.
    rank = block.input_rank
    for name in ("global_scale", "global_offset"):
        state[name] = state[name].reshape(1, -1, *(1,) * rank)
    if "w_perm" in state:
        matrix = state["w_perm"]
        if matrix.ndim == 1:
            matrix = torch.eye(len(matrix))[matrix]
        state["w_perm"] = matrix.reshape(*matrix.shape[:2], *(1,) * rank)
        state["w_perm_inv"] = state["w_perm"].transpose(0, 1).contiguous()
    # A checkpoint numbers only the layers that have weights.
    layers = [
        module for module in block.subnet.modules() if isinstance(getattr(module, "weight", None), Tensor)
    ]
    for number, layer in enumerate(layers):
        layer.weight.data = torch.from_numpy(np.array(own[f"subnet.{number}.weight"]))
        layer.bias.data = torch.from_numpy(np.array(own[f"subnet.{number}.bias"]))
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("subnet.") for name in missing), missing
