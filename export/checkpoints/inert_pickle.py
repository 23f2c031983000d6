"""A pickle machine that never runs anything.

Python's own unpickler calls what a file names; this one interprets the opcodes itself and keeps two closed
lists. Names of the first (`_BUILDERS`) make plain data and tensors with functions of this file. Names of the
second (`_INERT_MODULES`, `_INERT_NAMES`) become `Name` tokens, and what a file would build from them becomes a
`StandIn` that remembers how it would have been built. No name is ever imported or looked up. Every other name
ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

import torch

from flowedge.errors import CheckpointError, UnsafeCheckpointError


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that the file names; it is never looked up."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


@dataclass(slots=True, eq=False)
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

    @property
    def attributes(self) -> Mapping[str, object]:
        """The restored attributes by name; empty when the state is of another shape."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {
            k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)
        }


Storage: TypeAlias = tuple[torch.dtype, torch.Tensor]
"""Element type and the bytes, ``(n,)`` uint8, of one stored array."""

# Modules whose classes appear in checkpoints of the supported families: only ever as stand-ins.
_INERT_MODULES: Final = (
    "FrEIA",
    "anomalib",
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
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "torchvision",
    "typing",
    "utils",
)
_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
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
    }
)
_INERT_NAMES: Final = frozenset(
    [Name("torch", name) for name in _DTYPES]
    + [Name("torch", str(dtype).removeprefix("torch.")) for dtype in _DTYPES.values()]
    + [Name("torch", "device"), Name("datetime", "timedelta"), Name("functools", "partial")]
    + [Name("builtins", n) for n in ("bool", "bytes", "complex", "float", "int", "object", "slice", "str")]
    + [Name("freia_funcs", "OutputNode.dummy")]
)
# The only attribute look-ups that checkpoints need; the answer is again only a name.
_ATTRIBUTES: Final = frozenset(
    [(Name("freia_funcs", "OutputNode"), "dummy")]
    + [
        (Name("torchvision.transforms.functional", "InterpolationMode"), mode)
        for mode in ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    ]
)
_OLD_MODULES: Final[Mapping[str, str]] = MappingProxyType({"__builtin__": "builtins", "copy_reg": "copyreg"})
_LITERALS: Final = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


def unpickle_inert(data: bytes, storage: Callable[[torch.dtype, str, int], Storage]) -> tuple[object, int]:
    """Read one pickle without running anything.

    Args:
        data: The pickle, protocol 0 to 5; what follows its end is left alone.
        storage: Gives the stored array of an element type, a key and a count of elements.

    Returns:
        The object, made of plain data, containers, `torch.Tensor`, `Name` and `StandIn`; and the offset of the
        first byte behind the pickle.

    Raises:
        UnsafeCheckpointError: The pickle names something outside the two lists, or calls what is no name.
        CheckpointError: It is cut off or malformed.
    """
    machine = _Machine(storage)
    try:
        for opcode, arg, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop(), (position or 0) + 1
            machine.step(opcode.name, arg)
    except CheckpointError:
        raise
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"the file's pickle is malformed: {error or type(error).__name__}. Copy the checkpoint again."
        ) from error
    raise CheckpointError("the file's pickle has no end. Copy the checkpoint again.")


class _Machine:
    """The pickle machine's stack and memo."""

    def __init__(self, storage: Callable[[torch.dtype, str, int], Storage]) -> None:
        self.stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._storage = storage

    def step(self, opcode: str, arg: object) -> None:
        """Execute one opcode."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in _LITERALS:
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                # Python's pickler drops a half-built cycle with POP; a mark on top counts as one item.
                if self._marks and self._marks[-1] == len(stack):
                    self._marks.pop()
                else:
                    stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[_integer(arg)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_integer(arg)])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "LIST":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                if len(stack) < count:
                    raise IndexError("a tuple needs more items than there are")
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                stack.append(dict(_pairs(self._since_mark())))
            case "FROZENSET":
                stack.append(frozenset(map(_key, self._since_mark())))
            case "APPEND":
                value = stack.pop()
                _extend(stack[-1], [value])
            case "APPENDS":
                values = self._since_mark()
                _extend(stack[-1], values)
            case "ADDITEMS":
                values = self._since_mark()
                _add(stack[-1], values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                values = self._since_mark()
                _set_items(stack[-1], values)
            case "GLOBAL":
                stack.append(_allowed(*str(arg).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(str(module), str(name)))
            case "REDUCE" | "NEWOBJ":
                args, callee = stack.pop(), stack.pop()
                stack.append(_construct(callee, args))
            case "NEWOBJ_EX":
                kwargs, args, callee = stack.pop(), stack.pop(), stack.pop()
                stack.append(_construct(callee, args, kwargs))
            case "OBJ":
                callee, *rest = self._since_mark()
                stack.append(_construct(callee, tuple(rest)))
            case "INST":
                args = tuple(self._since_mark())
                stack.append(_construct(_allowed(*str(arg).split(" ", 1)), args))
            case "BUILD":
                state = stack.pop()
                _restore(stack[-1], state)
            case "BINPERSID":
                stack.append(self._stored_array(stack.pop()))
            case _:
                raise UnsafeCheckpointError(
                    f"the checkpoint uses the pickle opcode {opcode}, which no checkpoint needs. Do not trust the file."
                )

    def _since_mark(self) -> list[object]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _stored_array(self, identifier: object) -> Storage:
        match identifier:
            case ("storage", Name(module="torch", qualname=kind), str(key), _, int(count), *_) if (
                kind in _DTYPES
            ):
                return self._storage(_DTYPES[kind], key, count)
            case _:
                raise ValueError(f"{identifier!r:.100} is no stored array")


def _allowed(module: str, qualname: str) -> Name:
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


def _construct(callee: object, args: object, kwargs: object = None) -> object:
    if not isinstance(callee, Name) or not isinstance(args, tuple):
        raise UnsafeCheckpointError(
            f"the checkpoint calls {callee!r:.100}, which is no name. Do not trust the file."
        )
    builder = _BUILDERS.get(callee)
    if builder is not None:
        return builder(*args)
    return StandIn(kind=callee, args=args, state=kwargs)


def _restore(target: object, state: object) -> None:
    if isinstance(target, StandIn):
        target.state = state
    elif not isinstance(target, (dict, torch.Tensor)):  # these two carry attributes that nobody needs
        raise UnsafeCheckpointError(
            f"the checkpoint sets the state of {target!r:.100}. Do not trust the file."
        )


def _extend(target: object, values: list[object]) -> None:
    if isinstance(target, StandIn):
        target.items.extend(values)
    elif isinstance(target, list):
        target.extend(values)
    else:
        raise TypeError(f"items are appended to {type(target).__name__}")


def _add(target: object, values: list[object]) -> None:
    if not isinstance(target, set):
        raise TypeError(f"items are added to {type(target).__name__}")
    target.update(map(_key, values))


def _set_items(target: object, values: list[object]) -> None:
    if isinstance(target, StandIn):
        target.items.extend(_pairs(values))
    elif isinstance(target, dict):
        target.update(_pairs(values))
    else:
        raise TypeError(f"items are set in {type(target).__name__}")


def _pairs(values: list[object]) -> list[tuple[object, object]]:
    if len(values) % 2:
        raise ValueError("a key has no value")
    return [(_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True)]


def _key(value: object) -> object:
    """A key of a dict or a member of a set: shallow, so that hashing it is quick and cannot recurse."""
    flat = value if isinstance(value, tuple) else (value,)
    if all(item is None or isinstance(item, (str, bytes, int, float, Name, StandIn)) for item in flat):
        return value
    raise TypeError(f"{type(value).__name__} as a key")


def _integer(value: object) -> int:
    if isinstance(value, int):
        return value
    raise TypeError(f"{type(value).__name__} as a memo index")


# --- the functions that a checkpoint may call -----------------------------------------------------------------


def _dict(items: object = (), *_: object) -> dict[object, object]:
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, (list, tuple)):
        return {}  # a defaultdict's factory
    return dict(_pairs([part for item in items for part in _iterable(item)]))


def _iterable(value: object = ()) -> Iterable[object]:
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return value
    raise TypeError(f"{type(value).__name__} as a sequence")


def _attribute(owner: object, attribute: object) -> Name:
    if isinstance(owner, Name) and isinstance(attribute, str) and (owner, attribute) in _ATTRIBUTES:
        return Name(owner.module, f"{owner.qualname}.{attribute}")
    raise UnsafeCheckpointError(
        f"the checkpoint asks for builtins.getattr({owner!s:.60}, {attribute!r:.60}); nothing of it was run. "
        "Do not trust the file."
    )


def _encoded(text: object, encoding: object = "latin1") -> bytes:
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin1")
    raise ValueError(f"bytes encoded as {encoding!r:.60}")


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> torch.Tensor:
    match storage, offset:
        case (torch.dtype() as dtype, torch.Tensor() as data), int():
            shape = [_integer(n) for n in _iterable(size)]
            steps = [_integer(n) for n in _iterable(stride)]
            flat = data.view(dtype)
            last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
            if min([offset, *shape, *steps]) < 0 or (0 not in shape and last >= flat.numel()):
                raise ValueError(
                    f"a tensor of shape {shape} at {offset} reaches outside its {flat.numel()} values"
                )
            return torch.as_strided(flat, shape, steps, flat.storage_offset() + offset)
        case _:
            raise TypeError("a tensor without a stored array")


def _parameter(data: object, *_: object) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data
    raise TypeError("a parameter without a tensor")


def _reconstructed(kind: object, *_: object) -> StandIn:
    if isinstance(kind, Name) and kind not in _BUILDERS:
        return StandIn(kind=kind)
    raise TypeError("an object without a class")


_BUILDERS: Final[Mapping[Name, Callable[..., object]]] = MappingProxyType(
    {
        Name("_codecs", "encode"): _encoded,
        Name("builtins", "dict"): _dict,
        Name("builtins", "frozenset"): lambda items=(): frozenset(map(_key, _iterable(items))),
        Name("builtins", "getattr"): _attribute,
        Name("builtins", "list"): lambda items=(): list(_iterable(items)),
        Name("builtins", "set"): lambda items=(): set(map(_key, _iterable(items))),
        Name("builtins", "tuple"): lambda items=(): tuple(_iterable(items)),
        Name("collections", "Counter"): _dict,
        Name("collections", "OrderedDict"): _dict,
        Name("collections", "defaultdict"): _dict,
        Name("copyreg", "_reconstructor"): _reconstructed,
        Name("torch", "Size"): lambda items=(): tuple(_iterable(items)),
        Name("torch._utils", "_rebuild_parameter"): _parameter,
        Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        Name("torch._utils", "_rebuild_tensor"): _tensor,
        Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    }
)
