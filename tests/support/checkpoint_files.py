"""Write small checkpoints, key for key as the supported repositories do, with random weights."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

State = dict[str, torch.Tensor]


def values(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Make a random float32 tensor of a shape."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    """Return the state dict with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in state.items()}


def permutation_tensor(rng: np.random.Generator, channels: int, kind: str) -> torch.Tensor:
    """Make ``w_perm`` without trailing axes: ``index`` int64 ``(C,)``, ``hard`` or ``soft`` float32 ``(C, C)``."""
    if kind == "index":
        return torch.from_numpy(rng.permutation(channels))
    if kind == "hard":
        return torch.from_numpy(np.eye(channels, dtype=np.float32)[rng.permutation(channels)])
    normal = rng.standard_normal((channels, 1))
    reflection = np.eye(channels) - 2 * normal @ normal.T / (
        normal.T @ normal
    )  # orthogonal, as a rotation is
    return torch.from_numpy(reflection.astype(np.float32))


def aio_block(
    rng: np.random.Generator,
    channels: int,
    *,
    condition: int = 0,
    kernel: int | None = None,
    kind: str = "hard",
    layers: tuple[str, ...] = ("0", "2"),
    hidden: int = 3,
) -> State:
    """Make one all-in-one block on vectors (``kernel`` None) or on maps. A third layer name in the middle is a norm."""
    tail = () if kernel is None else (1, 1)
    square = () if kernel is None else (kernel, kernel)
    inputs, active = channels - channels // 2 + condition, channels // 2
    w_perm = permutation_tensor(rng, channels, kind)
    matrix = w_perm if kind == "index" else w_perm.reshape(channels, channels, *tail)
    first, last = layers[0], layers[-1]
    block = {
        "global_scale": values(rng, 1, channels, *tail),
        "global_offset": values(rng, 1, channels, *tail),
        "w_perm": matrix,
        "w_perm_inv": matrix.clone(),
        f"subnet.{first}.weight": values(rng, hidden, inputs, *square),
        f"subnet.{first}.bias": values(rng, hidden),
    }
    for norm in layers[1:-1]:
        block |= {f"subnet.{norm}.weight": values(rng, hidden), f"subnet.{norm}.bias": values(rng, hidden)}
    return block | {
        f"subnet.{last}.weight": values(rng, 2 * active, hidden, *square),
        f"subnet.{last}.bias": values(rng, 2 * active),
    }


def sequence(rng: np.random.Generator, channels: int, blocks: int = 2, **options: object) -> State:
    """Name the blocks as FrEIA's ``SequenceINN`` does: ``module_list.{k}.NAME``."""
    state: State = {}
    for k in range(blocks):
        state |= prefixed(f"module_list.{k}.", aio_block(rng, channels, **options))  # type: ignore[arg-type]
    return state


def resnet(rng: np.random.Generator, counts: tuple[int, ...] = (2, 2, 2, 2)) -> State:
    """Make a state dict with the names of a ResNet of basic blocks, and one channel in place of the real widths."""
    state = {"conv1.weight": values(rng, 1, 3, 7, 7), "bn1.weight": values(rng, 1)}
    for layer, blocks in enumerate(counts, start=1):
        for block in range(blocks):
            for number in (1, 2):
                state[f"layer{layer}.{block}.conv{number}.weight"] = values(rng, 1, 1, 3, 3)
                state[f"layer{layer}.{block}.bn{number}.running_var"] = values(rng, 1)
    return state


def cflow_state(seed: int = 0) -> State:
    """Make anomalib's CFLOW on the first two layers of a ResNet-18, two blocks a level, without a prefix."""
    rng = np.random.default_rng(seed)
    state = prefixed("encoder.feature_extractor.", resnet(rng, (2, 2)))
    for level, channels in enumerate((64, 128)):
        state |= prefixed(f"decoders.{level}.", sequence(rng, channels, condition=4))
    return state


def cross_net(
    rng: np.random.Generator, inputs: int, outputs: int, *, hidden: int = 4, kernel: int = 3
) -> State:
    """Make one of CS-Flow's cross-scale nets, with ``inputs`` channels in and ``2 * outputs`` out at each scale."""
    state = {f"gamma{scale}": values(rng, 1) for scale in range(3)}
    shapes = {f"conv_scale{scale}_0": (hidden, inputs) for scale in range(3)}
    shapes |= {f"conv_scale{scale}_1": (2 * outputs, hidden) for scale in range(3)}
    shapes |= dict.fromkeys(("up_conv10", "up_conv21", "down_conv01", "down_conv12"), (2 * outputs, hidden))
    for name, (out, inner) in shapes.items():
        state[f"{name}.weight"] = values(rng, out, inner, kernel, kernel)
        state[f"{name}.bias"] = values(rng, out)
    return state


def cross_coupling(
    rng: np.random.Generator, nets: tuple[str, str], channels: int = 304, kernel: int = 3
) -> State:
    """Make one of CS-Flow's couplings, with its nets "1" and "2" under the given names."""
    small, large = channels // 2, channels - channels // 2
    state = prefixed(f"{nets[0]}.", cross_net(rng, small, large, kernel=kernel))
    return state | prefixed(f"{nets[1]}.", cross_net(rng, large, small, kernel=kernel))


def fake_class(monkeypatch: pytest.MonkeyPatch, module: str, name: str, bases: tuple[type, ...] = ()) -> type:
    """Return an empty class that pickles as ``module.name`` while the test runs. Each call returns the same class."""
    known_class = getattr(sys.modules.get(module), name, None)
    if isinstance(known_class, type) and "is_fake" in vars(known_class):
        return known_class
    made = type(name, bases, {"__module__": module, "is_fake": True})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if path not in sys.modules or depth == len(parts):
            known = sys.modules.get(path)
            monkeypatch.setitem(sys.modules, path, known or types.ModuleType(path))
    monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return made


def save(path: Path, value: object) -> Path:
    """Save by ``torch.save``, and return the path."""
    torch.save(value, path)
    return path


def module_tree(kind: type, state: Mapping[str, torch.Tensor], **attributes: object) -> object:
    """Make an instance of a fake class, nested like the ``torch.nn.Module`` that has this state dict."""
    parameters = {name: tensor for name, tensor in state.items() if "." not in name}
    children: dict[str, State] = {}
    for name, tensor in state.items():
        child, dot, rest = name.partition(".")
        if dot:
            children.setdefault(child, {})[rest] = tensor
    modules = {name: module_tree(kind, inner) for name, inner in children.items()}
    made: object = kind()
    made.__dict__.update(_parameters=parameters, _buffers={}, _modules=modules)
    made.__dict__.update(attributes)
    return made
