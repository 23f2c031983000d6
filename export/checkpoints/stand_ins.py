"""What a checkpoint's pickle may name, and what becomes of it.

Two closed lists. Names of the first (`_BUILDERS`) make plain data and tensors with functions of this file. Names of
the second (`_INERT_MODULES`, `_INERT_NAMES`) become `Name` tokens, and what a file would build from them becomes a
`StandIn` that remembers how it would have been built. No name is ever imported or looked up. Every other name ends
the reading.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

import torch

from flowedge.errors import UnsafeCheckpointError
from flowedge.export.checkpoints.budget import MAX_DIMENSIONS, MAX_NAME, above_budget


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that the file names; it is never looked up."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


# How torch.fx pickles a module: the attributes are an argument of this function.
_TRACED: Final = Name("torch.fx.graph_module", "reduce_graph_module")
# Whose attributes are functions of torch, such as conv2d.
_FUNCTIONS: Final = Name("torch._C", "_VariableFunctionsClass")


@dataclass(slots=True, eq=False, repr=False)
class StandIn:
    """What the file holds of an object whose class is not built.

    Attributes:
        kind: The class, or the function that would have made the object.
        args: The arguments it would have been given.
        state: What would have been restored, usually a dict of attributes; None if nothing was.
        items: Values appended to a list-like object, or key-value pairs set in a dict-like one.
    """

    kind: Name
    args: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<stand-in for {self.kind}>"

    @property
    def is_tensor(self) -> bool:
        """Whether the object is a tensor that is not dense and real."""
        return self.kind in _ODD_TENSORS

    @property
    def attributes(self) -> Mapping[str, object]:
        """The restored attributes by name; empty when the state is of another shape."""
        state = self.args[:1] if self.kind == _TRACED else self.state
        # Pickle gives a dict, or a pair of dicts where the class has slots.
        parts = state[:2] if isinstance(state, tuple) else (state,)
        return {
            k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)
        }


Storage: TypeAlias = tuple[torch.dtype, torch.Tensor]
"""Element type and the bytes, ``(n,)`` uint8, of one stored array."""

# Modules whose classes appear in checkpoints of the supported families: only ever as stand-ins.
_INERT_MODULES: Final = (
    "FrEIA",
    "_operator",
    "anomalib",
    "argparse",
    "config",
    "freia_funcs",
    "jsonargparse",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "timm",
    "torch.fx",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "torchvision",
    "typing",
    "utils",
)
# The element type of each class of stored arrays.
STORED_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
        "UntypedStorage": torch.uint8,
    }
)
_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
)
# How torch pickles tensors that are not dense and real. They are refused by the names that they have in the file.
_ODD_TENSORS: Final = frozenset(
    Name("torch._utils", f"_rebuild_{kind}")
    for kind in ("sparse_tensor", "qtensor", "nested_tensor", "wrapper_subclass")
)
_INERT_NAMES: Final = frozenset(
    [Name("torch", name) for name in STORED_TYPES]
    + [Name("torch", name) for name in _TYPES]
    + [Name("torch.storage", "UntypedStorage"), Name("torch.serialization", "_get_layout"), *_ODD_TENSORS]
    + [Name("torch", f"per_{kind}") for kind in ("tensor_affine", "tensor_symmetric", "channel_affine")]
    + [Name("torch", "device"), Name("datetime", "timedelta"), Name("functools", "partial")]
    + [Name("builtins", n) for n in ("bool", "complex", "float", "int", "object", "range", "slice", "str")]
    # What a module pickled whole holds: the functions of its permutations, its ranges, the graph of a traced extractor.
    + [Name("builtins", "xrange"), Name("torch._C._nn", "linear"), Name("torch", "Tensor"), _FUNCTIONS]
    + [Name("freia_funcs", "OutputNode.dummy")]
)
# The look-ups in classes that checkpoints need, beside torch's functions; the answer is again only a name.
_ATTRIBUTES: Final = frozenset(
    [(Name("freia_funcs", "OutputNode"), "dummy")]
    + [
        (Name("torchvision.transforms.functional", "InterpolationMode"), mode)
        for mode in ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    ]
)
_OLD_MODULES: Final[Mapping[str, str]] = MappingProxyType({"__builtin__": "builtins", "copy_reg": "copyreg"})


def allowed_name(module: str, qualname: str) -> Name:
    """The token of a name that a pickle mentions.

    Raises:
        UnsafeCheckpointError: It is on neither list.
    """
    if len(module) + len(qualname) > MAX_NAME:
        raise above_budget("characters of a name", len(module) + len(qualname), MAX_NAME)
    name = Name(_OLD_MODULES.get(module, module), qualname)
    if name in _BUILDERS or name in _INERT_NAMES:
        return name
    inert = any(name.module == root or name.module.startswith(f"{root}.") for root in _INERT_MODULES)
    if inert and qualname.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return name
    raise UnsafeCheckpointError(
        f"the checkpoint asks for {name}, which is not on the list of what a checkpoint may name; nothing of it "
        "was run. Do not trust the file; if you do, load it in its own environment and save the state dict alone."
    )


def construct(callee: object, args: object, kwargs: object = None) -> object:
    """What a pickle gets for a call: plain data or a tensor for the first list, a stand-in for the second.

    Raises:
        UnsafeCheckpointError: What it calls is no name.
    """
    if not isinstance(callee, Name) or not isinstance(args, tuple):
        raise UnsafeCheckpointError(
            f"the checkpoint calls {reprlib.repr(callee)}, which is no name. Do not trust the file."
        )
    builder = _BUILDERS.get(callee)
    if builder is not None:
        return builder(*args)
    return StandIn(kind=callee, args=args, state=kwargs)


def key_value_pairs(values: list[object]) -> list[tuple[object, object]]:
    """Keys and values in turn, as pairs."""
    if len(values) % 2:
        raise ValueError("a key has no value")
    return [(plain_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True)]


def plain_key(value: object) -> object:
    """Return the value, a key of a dict or a member of a set.

    A key is shallow and short, so that hashing it is quick and cannot recurse. Its integers have 64 bits at most,
    because larger ones can be chosen to have one hash, and every look-up would compare them all.

    Raises:
        TypeError: The value is no such key.
    """
    flat = value if isinstance(value, tuple) else (value,)
    if len(flat) <= MAX_DIMENSIONS and all(
        item is None
        or isinstance(item, (str, bytes, float, Name, StandIn))
        or (isinstance(item, int) and item.bit_length() <= 64)
        for item in flat
    ):
        return value
    raise TypeError(f"{type(value).__name__} as a key")


def integer(value: object) -> int:
    """The value, which must be an integer."""
    if isinstance(value, int):
        return value
    raise TypeError(f"{type(value).__name__} as a memo index")


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
    """A method of an object of the file, or one of the known attributes of a class: as a name, like all others."""
    if isinstance(attribute, str) and len(attribute) <= MAX_NAME and attribute.isidentifier():
        if isinstance(owner, StandIn) and len(owner.kind.qualname) <= MAX_NAME:
            return Name(owner.kind.module, f"{owner.kind.qualname}.{attribute}")
        if isinstance(owner, Name) and (owner == _FUNCTIONS or (owner, attribute) in _ATTRIBUTES):
            return Name(owner.module, f"{owner.qualname}.{attribute}")
    raise UnsafeCheckpointError(
        f"the checkpoint asks for builtins.getattr({reprlib.repr(owner)}, {reprlib.repr(attribute)}); "
        "nothing of it was run. Do not trust the file."
    )


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin1")
    raise ValueError(f"bytes encoded as {reprlib.repr(encoding)}")


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
        case (torch.dtype(), torch.Tensor() as data), Name(module="torch", qualname=kind) if kind in _TYPES:
            return _tensor((_TYPES[kind], data), offset, size, stride)
        case _:
            raise TypeError("a tensor without a stored array or a type")


def _tensor_of_class(function: object, _class: object, args: object, *_: object) -> object:
    """Make a tensor of a class of its own as a plain one."""
    if isinstance(function, Name) and isinstance(args, tuple):
        if function in _ODD_TENSORS:
            return StandIn(kind=function)
        if function in _TENSORS:
            return _TENSORS[function](*args)
    raise TypeError("a tensor's class without a tensor")


def _tensor_without_values(dtype: object, size: object, *_: object) -> torch.Tensor:
    if isinstance(dtype, Name) and dtype.qualname in _TYPES:
        return torch.empty(_dimensions(size), dtype=_TYPES[dtype.qualname], device="meta")
    raise TypeError("a tensor without a type")


def _dimensions(value: object) -> list[int]:
    """The sizes or the strides of a tensor."""
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
