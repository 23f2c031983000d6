"""Remove the wrappers' parts from the names of a state dict, and find averaged copies beside the weights.

``torch.compile``, ``DataParallel``, Fabric, DeepSpeed, FSDP and trainers hold a module in an attribute of their own, so
that the attribute's name becomes a part of each tensor's name. Callbacks that average weights (EMA, SWA) keep a second
state dict in the same file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_NAME
from flowedge.export.checkpoints.stand_ins import StandIn
from flowedge.text import printable

T = TypeVar("T")

# The attributes in which wrappers hold what they wrap. No network of the supported families has a layer of that name.
WRAPPERS: Final = frozenset(
    {
        "_orig_mod",  # torch.compile
        "module",  # DataParallel, DistributedDataParallel, DeepSpeed, accelerate, AveragedModel
        "_module",  # Opacus
        "_forward_module",  # Lightning Fabric
        "_original_module",  # Lightning Fabric, next to the one above
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP of FairScale and of PyTorch 1.11
        "_checkpoint_wrapped_module",
        "_wrapped_module",
    }
)
_TRAINERS_ATTRIBUTE: Final = "model"
_AVERAGED: Final = re.compile(r"(?:^|_)(?:ema|swa|avg|averag(?:e|ed|ing)|shadow)(?:_|$)")
_DEEPEST: Final = 4  # dicts in dicts among which averaged copies are looked for
_FRONT: Final = 3  # parts of a tensor's name among which a copy's attribute stands
_COUNTER: Final = "n_averaged"
_TRAINED: Final = "online_model"  # where ema-pytorch keeps the trained weights, next to ``ema_model``


def unwrapped(items: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors by their names without the attributes of wrappers, wherever these are in a name.

    Raises:
        CheckpointError: Two entries get the same name and differ.
    """
    return _renamed(items, lambda name: ".".join(part for part in name.split(".") if part not in WRAPPERS))


def without_trainer(items: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors by their names without the leading ``model.`` of one trainer or of several.

    Raises:
        CheckpointError: Two entries get the same name and differ.
    """
    return _renamed(items, lambda name: re.sub(rf"^(?:{_TRAINERS_ATTRIBUTE}\.)+", "", name))


def without_copies(items: Mapping[str, T]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """Separate the weights of a state dict from the averaged copies that the same dict holds.

    Args:
        items: The items under names without wrappers. A copy's names have a part such as ``ema_model``.

    Returns:
        The weights, and the copies by the beginning of their names. Each copy has the weights' names.
    """
    weights: dict[str, T] = {}
    copies: dict[str, dict[str, T]] = {}
    for name, item in items.items():
        parts = name.split(".")
        averaged = [at for at, part in enumerate(parts[:_FRONT]) if _is_averaged(part)]
        if _TRAINED in parts[:_FRONT]:
            original = ".".join(parts[parts.index(_TRAINED) + 1 :])
            if original not in items:
                weights[original] = item
        elif not averaged:
            weights[name] = item
        elif parts[averaged[-1] :] != [_COUNTER]:
            rest = [part for at, part in enumerate(parts) if at not in averaged]
            copies.setdefault(".".join(parts[: averaged[-1] + 1]), {})[".".join(rest)] = item
    return weights, copies


def copies_in(root: object) -> Iterator[tuple[str, object]]:
    """Find what a file keeps under a key that names an average, such as timm's ``state_dict_ema``.

    Args:
        root: The saved object. Dicts in dicts are searched, such as the states of callbacks.

    Yields:
        The keys that lead to a value, joined by dots, and the value: a dict that holds tensors, or a pickled module.
    """
    pending: list[tuple[tuple[str, ...], object]] = [((), root)]
    # A dict may hold another one many times. Each is looked at once.
    searched: set[int] = set()
    weights: dict[int, bool] = {}
    while pending:
        keys, value = pending.pop()
        for key, inner in value.items() if isinstance(value, dict) else ():
            if not isinstance(key, str) or "optimizer" in key or len(key) > MAX_NAME:
                continue
            path = (*keys, key)
            if id(inner) not in weights:
                weights[id(inner)] = isinstance(inner, StandIn) or (
                    isinstance(inner, dict) and any(isinstance(item, torch.Tensor) for item in inner.values())
                )
            if weights[id(inner)] and any(map(_names_an_average, path)):
                yield ".".join(path), inner
            elif len(path) < _DEEPEST and id(inner) not in searched:
                searched.add(id(inner))
                pending.append((path, inner))


def _is_averaged(part: str) -> bool:
    """Return True when a part of a name marks an average, such as ``model_ema``."""
    return _AVERAGED.search(part.lower()) is not None


def _names_an_average(key: str) -> bool:
    """Return True when a key names an average. Callbacks have keys such as ``EMACallback{'decay': 0.999}``."""
    words = re.sub(r"([a-z])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3_\2", re.split(r"[{(]", key)[0])
    return any(_is_averaged(word) for word in re.split(r"\W+", words))


def _renamed(items: Mapping[str, T], rename: Callable[[str], str]) -> dict[str, T]:
    renamed: dict[str, T] = {}
    before: dict[str, str] = {}
    for name, item in items.items():
        short = rename(name)
        if short in renamed and not _are_equal(renamed[short], item):
            raise CheckpointError(
                f"{printable(before[short])} and {printable(name)} are both {printable(short)} without the names that "
                "wrappers add, and their values differ, so it is not known which one was trained. Save the state dict "
                "of the inner model alone."
            )
        if short not in renamed:
            renamed[short], before[short] = item, name
    return renamed


def _are_equal(one: object, other: object) -> bool:
    if one is other:
        return True
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        # Containers could be nested without end, so they count as different.
        plain = all(value is None or isinstance(value, (str, int, float)) for value in (one, other))
        return plain and one == other
    strided = all(t.layout == torch.strided and not t.is_meta and not t.is_nested for t in (one, other))
    return strided and one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
