"""What lies in a checkpoint file, before anyone knows whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.record import Array, Tensors
from flowedge.export.checkpoints.stand_ins import StandIn

T = TypeVar("T")
State: TypeAlias = Mapping[str, torch.Tensor]

# Where sources put their state dict, or the module that they pickled whole.
_STATE_KEYS: Final = ("state_dict", "model_state_dict", "model")
_MOST_MODULES: Final = 20_000
_READABLE: Final = frozenset(
    {
        *(
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
        ),
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """One file, loaded.

    Attributes:
        file: The file's name without folders.
        sha256: The file's hash.
        root: What was saved.
        state: The tensors of the state dict found in it, without the prefixes ``module.`` and ``model.``; empty
            if there is none.
        entries: The keys of the state dict as they stand in the file, those of other values included.
    """

    file: str
    sha256: str
    root: object
    state: State
    entries: tuple[str, ...]

    def get(self, key: str) -> object:
        """The value of a key of the saved dict, or None."""
        return self.root.get(key) if isinstance(self.root, dict) else None

    @property
    def is_wrapped(self) -> bool:
        """Whether the model is an attribute ``model`` of a trainer's module, as Lightning saves it."""
        return any(key.startswith("model.") for key in self.entries)

    def has(self, *parts: str) -> bool:
        """Whether a name of the state dict, in the file's words, contains one of the parts."""
        return any(part in key for key in self.entries for part in parts)


def contents_of(root: object, *, file: str, sha256: str) -> Contents:
    """Find the state dict in what `safe_load.load_untrusted` gave."""
    found = dict(_entries(root))
    state = {key.removeprefix("model."): v for key, v in found.items() if isinstance(v, torch.Tensor)}
    return Contents(file=file, sha256=sha256, root=root, state=state, entries=tuple(found))


def module_state(module: StandIn) -> dict[str, torch.Tensor]:
    """The state dict of a pickled ``torch.nn.Module``; empty if the object is none."""
    state: dict[str, torch.Tensor] = {}
    pending = [("", module)]
    seen = 0
    while pending:
        prefix, current = pending.pop()
        seen += 1
        if seen > _MOST_MODULES:  # modules that hold one another have no end
            raise CheckpointError(
                f"the pickled module has more than {_MOST_MODULES} parts: it is no detector."
            )
        attributes = current.attributes
        for group in ("_parameters", "_buffers"):
            for name, value in named(attributes.get(group)):
                if isinstance(value, torch.Tensor):
                    state[prefix + name] = value
        children = [
            (name, child) for name, child in named(attributes.get("_modules")) if isinstance(child, StandIn)
        ]
        pending.extend((f"{prefix}{name}.", child) for name, child in reversed(children))
    return state


def named(value: object) -> Iterator[tuple[str, object]]:
    """The items of a dict that have text keys; nothing of anything else."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                yield key, item


def state_in(value: object) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that stands inside another dict."""
    return _without_parallel({name: item for name, item in named(value) if isinstance(item, torch.Tensor)})


def arrays_of(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Tensors as NumPy arrays: floating point as float32, integers as int64, without a copy where possible.

    Raises:
        CheckpointError: A value is NaN or infinite, or a tensor is neither dense nor real, or has no values.
    """
    return {name: _array(name, tensor) for name, tensor in state.items()}


def check_readable(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that NumPy has no word for.

    Raises:
        CheckpointError: It has no values, or is neither dense nor real.
    """
    if tensor.is_meta:
        raise CheckpointError(
            f"{name} has a shape, {tuple(tensor.shape)}, and no values: it was saved from torch's device meta. "
            "Load the model's weights and save it again."
        )
    if tensor.layout != torch.strided or tensor.is_nested or tensor.dtype not in _READABLE:
        raise CheckpointError(
            f"{name} is a {tensor.dtype} tensor of layout {tensor.layout}, not a dense real one. "
            "Save the model again with ordinary tensors."
        )


def _array(name: str, tensor: torch.Tensor) -> Array:
    check_readable(name, tensor)
    if not tensor.is_floating_point():
        return tensor.detach().to(torch.int64).numpy()
    array = tensor.detach().to(torch.float32).numpy()
    if not np.isfinite(array).all():
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise CheckpointError(
            f"{name} has {bad} of {array.size} values that are NaN or infinite: the training diverged. "
            "Export an earlier checkpoint."
        )
    return array


def _entries(root: object) -> Iterator[tuple[str, object]]:
    if isinstance(root, StandIn):
        yield from module_state(root).items()
        return
    for key in _STATE_KEYS:
        value = root.get(key) if isinstance(root, dict) else None
        if isinstance(value, (dict, StandIn)):
            items = dict(named(value)) if isinstance(value, dict) else dict[str, object](module_state(value))
            break
    else:
        items = dict(named(root))
    yield from _without_parallel(items).items()


def _without_parallel(items: Mapping[str, T]) -> dict[str, T]:
    """Names without the ``module.`` that DataParallel puts before all of them."""
    wrapped = bool(items) and all(name.startswith("module.") for name in items)
    return {name.removeprefix("module.") if wrapped else name: item for name, item in items.items()}
