"""Interpret a pickle without running anything.

Python's own unpickler calls the functions that a file names. This unpickler interprets the opcodes and builds only the
objects that `stand_ins` allows.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable
from typing import IO, Final, cast

import torch

from flowedge.errors import CheckpointError, UnsafeCheckpointError
from flowedge.export.checkpoints.budget import Budget, BudgetedReader
from flowedge.export.checkpoints.names import STORED_TYPES, Name
from flowedge.export.checkpoints.stand_ins import (
    StandIn,
    Storage,
    allowed_name,
    construct,
    integer,
    key_value_pairs,
    plain_key,
)
from flowedge.text import shown

_LITERALS: Final = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE",
            "BINUNICODE8",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)


def unpickle_inert(
    source: bytes | IO[bytes], storage: Callable[[torch.dtype, str, int], Storage], budget: Budget
) -> object:
    """Read one pickle without running anything.

    Args:
        source: The pickle, protocol 0 to 5, or a file that stands at its beginning and is left at its end.
        storage: The function that returns the stored array of an element type, a key and a count of elements.
        budget: The account of the file that the pickle is part of.

    Returns:
        The object, made of plain data, containers, `torch.Tensor`, `Name` and `StandIn`.

    Raises:
        UnsafeCheckpointError: The pickle names something outside the two lists, or calls what is no name.
        CheckpointError: The pickle is cut off, malformed or above the budget.
    """
    pickled = _PickleStack(storage, budget)
    reader = BudgetedReader(io.BytesIO(source) if isinstance(source, bytes) else source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of odd escapes in the text of a damaged file
            for opcode, arg, _ in pickletools.genops(cast("IO[bytes]", reader)):
                if opcode.name == "STOP":
                    return pickled.stack.pop()
                budget.take_step(arg)
                pickled.step(opcode.name, arg)
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
            f"the file's pickle is malformed ({type(error).__name__}: {error!s:.300}). Copy the checkpoint again."
        ) from error
    raise CheckpointError("the file's pickle has no end. Copy the checkpoint again.")


class _PickleStack:
    """Hold the stack and the memo of one pickle, and execute its opcodes."""

    def __init__(self, storage: Callable[[torch.dtype, str, int], Storage], budget: Budget) -> None:
        self.stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._storage = storage
        self._budget = budget

    def step(self, opcode: str, arg: object) -> None:
        """Execute one opcode."""
        stack = self.stack
        match opcode:  # the most frequent ones first
            case _ if opcode in _LITERALS:
                stack.append(arg)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[integer(arg)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[integer(arg)])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                # Python's pickler drops a half-built cycle with POP. A mark on top counts as one item.
                if self._marks and self._marks[-1] == len(stack):
                    self._marks.pop()
                else:
                    stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
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
                stack.append(dict(key_value_pairs(self._since_mark())))
            case "FROZENSET":
                stack.append(frozenset(map(plain_key, self._since_mark())))
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
                stack.append(allowed_name(*str(arg).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(name, str):
                    raise TypeError("a name is not text")
                stack.append(allowed_name(module, name))
            case "REDUCE" | "NEWOBJ":
                args, callee = stack.pop(), stack.pop()
                stack.append(self._construct(callee, args))
            case "NEWOBJ_EX":
                kwargs, args, callee = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._construct(callee, args, kwargs))
            case "OBJ":
                callee, *rest = self._since_mark()
                stack.append(self._construct(callee, tuple(rest)))
            case "INST":
                args = tuple(self._since_mark())
                stack.append(self._construct(allowed_name(*str(arg).split(" ", 1)), args))
            case "BUILD":
                state = stack.pop()
                if isinstance(state, tuple):
                    self._budget.take_copies(*state[:2])
                else:
                    self._budget.take_copies(state)
                _restore(stack[-1], state)
            case "BINPERSID":
                stack.append(self._stored_array(stack.pop()))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise UnsafeCheckpointError(
                    f"the checkpoint uses the pickle opcode {opcode}, which no checkpoint needs. Do not trust the file."
                )

    def _construct(self, callee: object, args: object, kwargs: object = None) -> object:
        made = construct(callee, args, kwargs)
        if not isinstance(made, torch.Tensor):
            self._budget.take_copies(made)
            if isinstance(made, StandIn):
                self._budget.take_copies(*made.args[:1])
        # A parameter is the same tensor as its argument, which was counted before.
        elif not made.is_meta and not (isinstance(args, tuple) and args and made is args[0]):
            self._budget.take_tensor(made.dtype, made.shape)
        return made

    def _since_mark(self) -> list[object]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _stored_array(self, identifier: object) -> Storage:
        match identifier:
            case (
                "storage",
                Name(module="torch" | "torch.storage", qualname=kind),
                str(key),
                _,
                int(count),
                *view,
            ) if kind in STORED_TYPES and not any(view):
                return self._storage(STORED_TYPES[kind], key, count)
            case _:
                raise ValueError(f"{shown(identifier)} is no stored array")


def _restore(target: object, state: object) -> None:
    if isinstance(target, StandIn):
        target.state = state
    elif not isinstance(target, (dict, torch.Tensor)):  # these two carry attributes that nobody needs
        raise UnsafeCheckpointError(
            f"the checkpoint sets the state of {shown(target)}. Do not trust the file."
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
    target.update(map(plain_key, values))


def _set_items(target: object, values: list[object]) -> None:
    if isinstance(target, StandIn):
        target.items.extend(key_value_pairs(values))
    elif isinstance(target, dict):
        target.update(key_value_pairs(values))
    else:
        raise TypeError(f"items are set in {type(target).__name__}")
