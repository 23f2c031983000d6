"""Real FrEIA blocks, filled from a checkpoint."""

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
    """The clamp of FrEIA's main branch since August 2023: ``alpha tanh(a / alpha)``."""

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
    """One level's blocks as FrEIA's ``SequenceINN``.

    Args:
        checkpoint: What the reader returned.
        level: Which level's blocks.
        shape: What FrEIA calls the input dimensions: ``(C,)`` or ``(C, H, W)``.
        condition: Channels of the condition, 0 for none.
        subnet: From a block's number to FrEIA's subnet constructor.
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
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in own.items()
        if not name.startswith("subnet.")
    }
    rank = block.input_rank
    for name in ("global_scale", "global_offset"):
        state[name] = state[name].reshape(1, -1, *(1,) * rank)
    if "w_perm" in state:
        matrix = state["w_perm"]
        if matrix.ndim == 1:
            matrix = torch.eye(len(matrix))[matrix]
        state["w_perm"] = matrix.reshape(*matrix.shape[:2], *(1,) * rank)
        state["w_perm_inv"] = state["w_perm"].transpose(0, 1).contiguous()
    layers = [
        module for module in block.subnet.modules() if isinstance(getattr(module, "weight", None), Tensor)
    ]
    for number, layer in enumerate(layers):
        layer.weight.data = torch.from_numpy(np.array(own[f"subnet.{number}.weight"]))
        layer.bias.data = torch.from_numpy(np.array(own[f"subnet.{number}.bias"]))
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("subnet.") for name in missing), missing
