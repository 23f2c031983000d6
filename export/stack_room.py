"""Keep Python's call stack in one piece of memory while a deeply nested library runs."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SLOTS: Final = 1 << 17  # of 8 bytes each


def with_stack_room(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function reserve room on the call stack for all that it calls.

    CPython keeps its call stack in pieces of 16 KiB since version 3.11. A call that does not fit the last piece asks
    the system for a new piece, and its return gives the piece back. A loop whose calls happen to lie at such a border
    makes two system calls for each of its own. The tracer of PyTorch makes millions of calls, so one export took 33 s
    from one caller and 200 s from another caller. A function that declares a large stack gets a large piece, and the
    calls below it use what is left of the piece.

    Args:
        function: A function written in Python. It is changed and returned.
    """
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace(co_stacksize=_SLOTS)
    return function
