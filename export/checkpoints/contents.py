"""Find the state dict and the other entries of a checkpoint file of any repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_DEPTH, MAX_NAME, MAX_STEPS, above_budget
from flowedge.export.checkpoints.checkpoint import Array, Tensors
from flowedge.export.checkpoints.names import Name, is_foreign
from flowedge.export.checkpoints.settings import Weights
from flowedge.export.checkpoints.stand_ins import StandIn
from flowedge.export.checkpoints.wrappers import (
    WRAPPERS,
    copies_in,
    unwrapped,
    without_copies,
    without_trainer,
)
from flowedge.text import printable

State: TypeAlias = Mapping[str, torch.Tensor]

# The keys under which sources keep their state dict or the whole pickled module. The last is DeepSpeed's.
_STATE_KEYS: Final = ("state_dict", "model_state_dict", "model", "module")
_RAW_OF_LIGHTNING: Final = "current_model_state"
_MOST_WRAPPERS: Final = 20
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
    """Hold the loaded contents of one file.

    Attributes:
        file: The file's name without folders.
        sha256: The file's hash.
        root: The object that was saved.
        state: The chosen tensors by their names without the prefixes of wrappers and trainers. The mapping is empty
            if there are no tensors to choose.
        entries: All keys of the state dict, also those of values that are no tensors, without the prefixes of wrappers.
        weights: ``trained`` or ``ema``, whichever ``state`` holds.
        copy: The place in the file of the weights that ``state`` does not hold, or an empty string if there are no
            other weights.
        stand_ins: The classes and functions of the user's own code that the file mentions, in order, none of which was
            run.
        transform_from: The other file that the user names for the transform, or None.
    """

    file: str
    sha256: str
    root: object
    state: State
    entries: tuple[str, ...]
    weights: Weights = "trained"
    copy: str = ""
    stand_ins: tuple[str, ...] = ()
    transform_from: Contents | None = None

    def get(self, key: str) -> object:
        """Return the value of a key of the saved dict, a pickled module without its wrappers, or None."""
        value = self.root.get(key) if isinstance(self.root, dict) else None
        return _inner_module(value) if isinstance(value, StandIn) else value

    @property
    def is_wrapped(self) -> bool:
        """True when the model is an attribute ``model`` of a trainer's module, as Lightning saves it."""
        return any(key.startswith("model.") for key in self.entries)

    def has(self, *parts: str) -> bool:
        """Return True when a name in the state dict contains one of the given parts."""
        return any(part in key for key in self.entries for part in parts)


def contents_of(root: object, *, file: str, sha256: str, weights: Weights | None = None) -> Contents:
    """Find the state dict in an object that `safe_load.load_untrusted` returned.

    Args:
        root: The object that was saved.
        file: The file's name without folders.
        sha256: The file's hash.
        weights: The weights to take where there are two kinds. The default takes those that the trainer itself loads.

    Raises:
        CheckpointError: The file does not hold the weights that were asked for, or two tensors get the same name.
    """
    if isinstance(root, StandIn):
        root = _inner_module(root)
    found, inside = without_copies(unwrapped(_entries(root)))
    trained, copies = _tensors(found), _copies(root, inside)
    default: Weights = "trained"
    raw = root.get(_RAW_OF_LIGHTNING) if isinstance(root, dict) else None
    if isinstance(raw, dict):  # Lightning's callback puts the average in the place that it loads
        copies, trained, default = {"state_dict": trained}, _tensors(unwrapped(_items(raw))), "ema"
    elif not trained and len(copies) == 1:
        default, found = "ema", {**found, **dict.fromkeys(next(iter(copies.values())))}
    copies = {
        where: fitting
        for where, copy in copies.items()
        if (fitting := {name: tensor for name, tensor in copy.items() if not trained or name in trained})
    }
    chosen = weights or default
    if chosen == "ema" and len(copies) != 1:
        held = (
            f"several averaged copies, {', '.join(map(printable, copies))},"
            if copies
            else "no averaged copy, by name,"
        )
        raise CheckpointError(f"it holds {held} of its weights. Leave --set weights=ema out.")
    if chosen == "trained" and not trained and copies:
        raise CheckpointError("it holds averaged weights only. Leave --set weights=trained out.")
    averaged = next(iter(copies), "")
    other = (_RAW_OF_LIGHTNING if default == "ema" else "state_dict") if chosen == "ema" else averaged
    return Contents(
        file=file,
        sha256=sha256,
        root=root,
        state={**trained, **copies[averaged]} if chosen == "ema" else trained,
        entries=tuple(found),
        weights=chosen,
        copy=other if trained else "",
        stand_ins=_foreign_names(root),
    )


def module_state(module: StandIn) -> dict[str, torch.Tensor]:
    """Return the state dict of a pickled ``torch.nn.Module``. The state dict is empty if the object is no module.

    Raises:
        CheckpointError: The modules hold one another, or have more levels or parts than the budget allows.
    """
    state: dict[str, torch.Tensor] = {}
    pending = [("", 0, module)]
    parts = 0
    while pending:
        prefix, depth, current = pending.pop()
        if depth > MAX_DEPTH:
            raise above_budget("modules inside modules", f"more than {MAX_DEPTH}", MAX_DEPTH)
        attributes = current.attributes
        parts += 1 + len(attributes)
        for group in ("_parameters", "_buffers"):
            tensors = dict(named(attributes.get(group)))
            parts += len(tensors)
            state.update((prefix + name, tensor) for name, tensor in _only_tensors(tensors).items())
        children = [
            (name, child) for name, child in named(attributes.get("_modules")) if isinstance(child, StandIn)
        ]
        parts += len(children)
        if parts > MAX_STEPS:
            raise above_budget("parts of a pickled module", f"more than {MAX_STEPS}", MAX_STEPS)
        check_key(prefix)
        pending.extend((f"{prefix}{name}.", depth + 1, child) for name, child in reversed(children))
    return state


def named(value: object) -> Iterator[tuple[str, object]]:
    """Yield the items of a dict that have text keys. Yield nothing for an object that is no dict.

    Raises:
        CheckpointError: A key is longer than the budget allows.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                check_key(key)
                yield key, item


def check_key(key: str) -> None:
    """Refuse a tensor's or a setting's name that is longer than the budget allows.

    Raises:
        CheckpointError: The name is too long.
    """
    if len(key) > MAX_NAME:
        raise above_budget("characters of a name", len(key), MAX_NAME)


def state_in(value: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict that stands inside another dict, by their names without wrappers."""
    return _tensors(unwrapped(_items(value)))


def arrays_of(state: Mapping[str, torch.Tensor]) -> Tensors:
    """Return tensors as NumPy arrays: floating point as float32, integers as int64, without a copy if possible.

    Raises:
        CheckpointError: A value is NaN or infinite, or a tensor is neither dense nor real, or has no values.
    """
    return {name: _array(name, tensor) for name, tensor in state.items()}


def check_readable(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that NumPy cannot hold.

    Raises:
        CheckpointError: The tensor has no values, is not dense, or is not real.
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


def _entries(root: object) -> dict[str, object]:
    """Return the state dict of a file or of the module in it, as it stands there."""
    for key in _STATE_KEYS:
        value = root.get(key) if isinstance(root, dict) else None
        if isinstance(value, (dict, StandIn)):
            return _items(value)
    return _items(root)


def _items(value: object) -> dict[str, object]:
    return dict(module_state(value)) if isinstance(value, StandIn) else dict(named(value))


def _tensors(items: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return those of the named values that are tensors, by their names without a trainer's prefix."""
    return without_trainer(_only_tensors(items))


def _only_tensors(items: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return those of the named values that are tensors.

    Raises:
        CheckpointError: One of the items is a tensor that is not dense.
    """
    for name, item in items.items():
        if isinstance(item, StandIn) and item.is_tensor:
            raise CheckpointError(
                f"{printable(name)} is a torch.Tensor made by {item.kind}, not a dense real one. Save the model again "
                "with ordinary tensors."
            )
    return {name: item for name, item in items.items() if isinstance(item, torch.Tensor)}


def _copies(root: object, inside: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the averaged copies of the weights by their place: in the state dict itself, or under other keys."""
    copies = {f"the names {start}.…": _tensors(copy) for start, copy in inside.items()}
    for where, value in copies_in(root):
        weights, nested = without_copies(unwrapped(_items(value)))
        copies[where] = _tensors(next(iter(nested.values()), weights))
    return {where: copy for where, copy in copies.items() if copy}


def _foreign_names(root: object) -> tuple[str, ...]:
    """Return the names in a file that are neither Python's nor of a library that the readers know, sorted."""
    found: set[Name] = set()
    seen: set[int] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, torch.Tensor)):
            continue
        seen.add(id(value))
        if isinstance(value, Name):
            found.add(value)
        elif isinstance(value, StandIn):
            pending += [value.kind, value.args, value.state, value.items]
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
    return tuple(sorted(str(name) for name in found if is_foreign(name)))


def _inner_module(module: StandIn) -> StandIn:
    """Return the module that wrappers such as DataParallel hold."""
    for _ in range(_MOST_WRAPPERS):
        children = dict(named(module.attributes.get("_modules")))
        inner = next((children[name] for name in children if name in WRAPPERS), None)
        if not isinstance(inner, StandIn):
            break
        module = inner
    return module
