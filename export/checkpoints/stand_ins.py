"""Turn the names and calls of a checkpoint's pickle into data.

Names of `_BUILDERS` make plain data and tensors with functions of this file. All others that `names.may_stand_in`
allows become `Name` tokens, and what a file would build from them becomes a `StandIn` that remembers how it would have
been built. No name is ever imported or looked up. Every other name ends the reading.
"""

from __future__ import annotations

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import torch

from flowedge.errors import UnsafeCheckpointError
from flowedge.export.checkpoints.budget import MAX_DIMENSIONS, MAX_NAME, above_budget
from flowedge.export.checkpoints.names import ODD_TENSORS, TYPES, Name, may_stand_in
from flowedge.text import printable, shown

# torch.fx pickles a module as a call of this function, with the attributes as an argument.
_TRACED: Final = Name("torch.fx.graph_module", "reduce_graph_module")
_NUMPY_SCALARS: Final = (
    Name("numpy.core.multiarray", "scalar"),
    Name("numpy._core.multiarray", "scalar"),
)
# The class whose attributes are functions of torch, such as conv2d.
_FUNCTIONS: Final = Name("torch._C", "_VariableFunctionsClass")


@dataclass(slots=True, eq=False, repr=False)
class StandIn:
    """Hold the parts that the file has of an object whose class is not built.

    Attributes:
        kind: The class, or the function that would have made the object.
        args: The arguments of the class or function.
        state: The state that would have been restored, usually a dict of attributes. The value is None if the file has
            none.
        items: Values appended to a list-like object, or key-value pairs set in a dict-like one.
    """

    kind: Name
    args: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)
    _attributes: Mapping[str, object] | None = field(default=None, init=False)

    def __repr__(self) -> str:
        return f"<stand-in for {self.kind}>"

    @property
    def is_tensor(self) -> bool:
        """True when the object is a tensor that is not dense and real."""
        return self.kind in ODD_TENSORS

    @property
    def attributes(self) -> Mapping[str, object]:
        """Return the restored attributes by name. The result is empty when the state has another form.

        The attributes are collected at the first access, after the file was read.
        """
        if self._attributes is None:
            self._attributes = self._collected()
        return self._attributes

    def _collected(self) -> Mapping[str, object]:
        state = self.args[:1] if self.kind == _TRACED else self.state
        # Pickle gives a dict, or a pair of dicts where the class has slots.
        parts = state[:2] if isinstance(state, tuple) else (state,)
        return {
            k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)
        }


Storage: TypeAlias = tuple[torch.dtype, torch.Tensor]
"""Element type and the bytes, ``(n,)`` uint8, of one stored array."""

_KEY_DEPTH: Final = 3  # tuples in tuples that a key may be made of


def allowed_name(module: str, qualname: str) -> Name:
    """Return the `Name` of a class or function that a pickle mentions, after a check that it is allowed.

    Raises:
        UnsafeCheckpointError: The name is neither a builder's nor one that may become a stand-in.
    """
    if len(module) + len(qualname) > MAX_NAME:
        raise above_budget("characters of a name", len(module) + len(qualname), MAX_NAME)
    # Protocols 0 to 2, and so torch.save, write Python 2's names.
    new = NAME_MAPPING.get((module, qualname), (IMPORT_MAPPING.get(module, module), qualname))
    name = Name(*new)
    if name in _BUILDERS or may_stand_in(name):
        return name
    raise UnsafeCheckpointError(
        f"the checkpoint asks for {printable(str(name))}, which no detector needs; nothing of it was run. Do not "
        "trust the file; if you do, load it in its own environment and save the state dict alone."
    )


def construct(callee: object, args: object, kwargs: object = None) -> object:
    """Return the result of a call in a pickle: data or a tensor for a builder's name, a stand-in for another name.

    Raises:
        UnsafeCheckpointError: The called object is no name.
    """
    if not isinstance(callee, Name) or not isinstance(args, tuple):
        raise UnsafeCheckpointError(
            f"the checkpoint calls {shown(callee)}, which is no name. Do not trust the file."
        )
    builder = _BUILDERS.get(callee)
    if builder is not None:
        return builder(*args)
    return StandIn(kind=callee, args=args, state=kwargs)


def key_value_pairs(values: list[object]) -> list[tuple[object, object]]:
    """Return a list that holds keys and values alternately as a list of pairs."""
    if len(values) % 2:
        raise ValueError("a key has no value")
    return [(plain_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True)]


def plain_key(value: object) -> object:
    """Check that a value may be the key of a dict or the member of a set, and return it.

    A key is shallow and short, so that hashing it is quick and cannot recurse. Integers in a key have 64 bits at
    most, because larger ones can be chosen to have one hash, and every look-up would compare them all.

    Raises:
        TypeError: The value is too deep for a key, or holds something that a key may not hold.
        CheckpointError: The value has more members than the budget allows.
    """
    level = [value]
    for _ in range(_KEY_DEPTH):
        groups = [one if isinstance(one, (tuple, frozenset)) else (one,) for one in level]
        if (members := sum(map(len, groups))) > MAX_DIMENSIONS:
            raise above_budget("members of a dict's key or of a set's member", members, MAX_DIMENSIONS)
        level = [item for group in groups for item in group]
        if all(map(_is_plain, level)):
            return value
    raise TypeError(f"{type(value).__name__} as a key")


def _is_plain(item: object) -> bool:
    if isinstance(item, int):
        return item.bit_length() <= 64
    return item is None or isinstance(item, (str, bytes, float, Name, StandIn))


def integer(value: object) -> int:
    """Check that a value is an integer, and return it."""
    if isinstance(value, int):
        return value
    raise TypeError(f"{type(value).__name__} as a memo index")


def numpy_number(value: StandIn) -> object:
    """Turn the stand-in of a NumPy number into a Python number, and leave any other stand-in as it is."""
    if value.kind not in _NUMPY_SCALARS:
        return value
    match value.args:
        case (StandIn(args=(str(code), *_), state=state), bytes(data)) if re.fullmatch(
            r"[fiu][248]|b1", code
        ):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
            kind = np.dtype(f"{'>' if order == '>' else '<'}{code}")
            return np.frombuffer(data, kind).item() if len(data) == kind.itemsize else value
        case _:
            return value


# --- the functions that a checkpoint may call -----------------------------------------------------------------


def _dict(items: object = (), *_: object) -> dict[object, object]:
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, (list, tuple)):
        return {}  # a defaultdict's factory
    return dict(key_value_pairs([part for item in items for part in _iterable(item)]))


def _iterable(value: object = ()) -> Iterable[object]:
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return value
    raise TypeError(f"{type(value).__name__} as a sequence")


def _attribute(owner: object, attribute: object) -> Name:
    """Return the `Name` of a method, or of a member of a class such as an enumeration."""
    kind = owner.kind if isinstance(owner, StandIn) else owner
    if isinstance(attribute, str) and isinstance(kind, Name) and kind not in _BUILDERS:
        if len(attribute) + len(kind.qualname) > MAX_NAME:
            raise above_budget("characters of a name", len(attribute) + len(kind.qualname), MAX_NAME)
        # A look-up in a module, which begins with a small letter, could lead anywhere.
        is_class = kind == _FUNCTIONS or kind.qualname.rpartition(".")[2].lstrip("_")[:1].isupper()
        member = Name(kind.module, f"{kind.qualname}.{attribute}")
        is_function = kind == _FUNCTIONS and attribute.isidentifier() and not attribute.startswith("__")
        if is_function or (
            (isinstance(owner, StandIn) or is_class) and "." not in attribute and may_stand_in(member)
        ):
            return member
    raise UnsafeCheckpointError(
        f"the checkpoint asks for builtins.getattr({shown(owner)}, {shown(attribute)}); "
        "nothing of it was run. Do not trust the file."
    )


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin1")
    raise ValueError(f"bytes encoded as {shown(encoding)}")


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> torch.Tensor:
    match storage, offset:
        case (torch.dtype() as dtype, torch.Tensor() as data), int():
            shape, steps = _dimensions(size), _dimensions(stride)
            flat = data.view(dtype)
            last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
            if min([offset, *shape, *steps]) < 0 or (0 not in shape and last >= flat.numel()):
                raise ValueError(
                    f"a tensor of shape {shape} at {offset} reaches outside its {flat.numel()} values"
                )
            return torch.as_strided(flat, shape, steps, flat.storage_offset() + offset)
        case _:
            raise TypeError("a tensor without a stored array")


def _tensor_of_type(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> torch.Tensor:
    """Make a tensor over a stored array of bytes, as torch saves the types that are younger than its classes."""
    match storage, dtype:
        case (torch.dtype(), torch.Tensor() as data), Name(module="torch", qualname=kind) if kind in TYPES:
            return _tensor((TYPES[kind], data), offset, size, stride)
        case _:
            raise TypeError("a tensor without a stored array or a type")


def _tensor_of_class(function: object, _class: object, args: object, *_: object) -> object:
    """Make a plain tensor in place of one of a subclass."""
    if isinstance(function, Name) and isinstance(args, tuple):
        if function in ODD_TENSORS:
            return StandIn(kind=function)
        if function in _TENSORS:
            return _TENSORS[function](*args)
    raise TypeError("a tensor's class without a tensor")


def _tensor_without_values(dtype: object, size: object, *_: object) -> torch.Tensor:
    if isinstance(dtype, Name) and dtype.qualname in TYPES:
        return torch.empty(_dimensions(size), dtype=TYPES[dtype.qualname], device="meta")
    raise TypeError("a tensor without a type")


def _dimensions(value: object) -> list[int]:
    """Return the sizes or the strides of a tensor."""
    items = value if isinstance(value, (list, tuple)) else ()
    if len(items) > MAX_DIMENSIONS:
        raise above_budget("dimensions of a tensor", len(items), MAX_DIMENSIONS)
    return [integer(item) for item in items]


def _bytes(value: object = b"", encoding: object = "latin1") -> bytes:
    if isinstance(value, bytes):
        return value
    return _encoded(value, "latin1" if encoding == "latin-1" else encoding)


def _parameter(data: object, *_: object) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data
    raise TypeError("a parameter without a tensor")


def _reconstructed(kind: object, *_: object) -> StandIn:
    if isinstance(kind, Name) and kind not in _BUILDERS:
        return StandIn(kind=kind)
    raise TypeError("an object without a class")


_TENSORS: Final[Mapping[Name, Callable[..., object]]] = MappingProxyType(
    {
        Name("torch._utils", "_rebuild_meta_tensor_no_storage"): _tensor_without_values,
        Name("torch._utils", "_rebuild_parameter"): _parameter,
        Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        Name("torch._utils", "_rebuild_tensor"): _tensor,
        Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
        Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    }
)
_BUILDERS: Final[Mapping[Name, Callable[..., object]]] = MappingProxyType(
    {
        **_TENSORS,
        Name("_codecs", "encode"): _encoded,
        Name("builtins", "bytearray"): _bytes,
        Name("builtins", "bytes"): lambda: b"",  # how protocols 0 to 2 write empty bytes
        Name("builtins", "dict"): _dict,
        Name("builtins", "frozenset"): lambda items=(): frozenset(map(plain_key, _iterable(items))),
        Name("builtins", "getattr"): _attribute,
        Name("builtins", "list"): lambda items=(): list(_iterable(items)),
        Name("builtins", "set"): lambda items=(): set(map(plain_key, _iterable(items))),
        Name("builtins", "tuple"): lambda items=(): tuple(_iterable(items)),
        Name("collections", "Counter"): _dict,
        Name("collections", "OrderedDict"): _dict,
        Name("collections", "defaultdict"): _dict,
        Name("copyreg", "_reconstructor"): _reconstructed,
        Name("torch", "Size"): lambda items=(): tuple(_iterable(items)),
        Name("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_class,
    }
)
