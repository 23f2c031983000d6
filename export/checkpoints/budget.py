"""Limit the time and the memory that one checkpoint may cost, before anything is allocated or walked.

The limits are far above what a detector needs. The largest known one has some 4,000 tensors and a pickle of 1 MB.
`docs/guide.md` states them for users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, Final

import torch

from flowedge.errors import CheckpointError
from flowedge.runtime.device.machine import find_memory

MAX_ENTRIES: Final = 100_000
"""Files in the zip archive."""
MAX_PICKLE_BYTES: Final = 64 << 20
MAX_TEXT_BYTES: Final = 16 << 20
"""Bytes of one string, or of one array of bytes, in the pickle."""
MAX_STEPS: Final = 1_000_000
"""Opcodes of the pickle, and items of the containers that it copies."""
MAX_TENSORS: Final = 100_000
MAX_DIMENSIONS: Final = 8
MAX_DIGITS: Final = 4000
"""Decimal digits of an integer."""
MAX_NAME: Final = 500
"""Characters of a class's or a function's dotted name."""
MAX_DEPTH: Final = 100
"""Containers inside containers, and modules inside modules, where they are walked."""
MAX_TRANSFORM_STEPS: Final = 100
MAX_COUPLINGS: Final = 256
"""Coupling blocks of a detector."""
MAX_REFLECTIONS: Final = 1024
"""Householder vectors of a rotation."""
MAX_PIXELS: Final = 1024 * 1024
"""Pixels of the network's input, where the user does not give its size."""

_ADVICE: Final = "No detector needs that. Do not trust the file; if you do, save its state dict alone."
_MAX_INTEGER: Final = 10**MAX_DIGITS
_FLOAT_BYTES: Final = 4  # floating point is read as float32 ...
_INTEGER_BYTES: Final = 8  # ... and integers as int64
_FREE_BYTES: Final = 64 << 20
_BYTES_PER_PIXEL: Final = 1000  # the least memory per input pixel that an export of any network takes
_FACTOR: Final = 4


def above_budget(what: str, value: object, limit: object) -> CheckpointError:
    """Make the error for a file that asks for more than a limit allows.

    Args:
        what: The thing that the limit counts, with its unit, such as "strings of bytes".
        value: The amount that the file asks for.
        limit: The largest amount that is allowed.
    """
    return CheckpointError(f"{what}: the file has {value}, the limit is {limit}. {_ADVICE}")


def check_couplings(count: int) -> None:
    """Refuse a flow that has more coupling blocks than the budget allows.

    Raises:
        CheckpointError: There are more than `MAX_COUPLINGS`.
    """
    if count > MAX_COUPLINGS:
        raise above_budget("coupling blocks", count, MAX_COUPLINGS)


def check_image_size(size: tuple[int, int], *, given: bool) -> None:
    """Refuse an input so large that the export takes minutes or all memory.

    Args:
        size: ``(height, width)`` of the network's input, pixels.
        given: True when the user gave the size and so knows of it.

    Raises:
        CheckpointError: The input has more than `MAX_PIXELS` pixels and the user did not give its size, or the machine
            has not the memory.
    """
    height, width = size
    pixels = height * width
    if pixels > MAX_PIXELS and not given:
        raise CheckpointError(
            f"the file's input size is {height}x{width}, {pixels} pixels, and the limit is {MAX_PIXELS}: an export "
            f"takes minutes and {pixels * _BYTES_PER_PIXEL / 1e9:.0f} GB or more. If the model was trained on such "
            f"images, say so with --image-size {height} {width}; else give the size that it was trained on."
        )
    memory = find_memory()
    needed = pixels * _BYTES_PER_PIXEL
    if memory is not None and needed > memory.available:
        raise CheckpointError(
            f"an input of {height}x{width} needs {needed / 1e9:.1f} GB or more, and {memory.available / 1e9:.1f} GB "
            "are available on this machine. Give a smaller --image-size, or export on a machine with more memory."
        )


class Budget:
    """Count what one file's pickle costs and refuse it above a limit."""

    def __init__(self, file_bytes: int) -> None:
        """Begin to count the cost of a file of ``file_bytes`` bytes."""
        self._steps = 0
        self._made_bytes = 0
        self._tensors = 0
        self._tensor_bytes = 0
        memory = find_memory()
        more = (_FACTOR - 1) * file_bytes
        if memory is not None:
            more = min(more, memory.available)
        self._max_tensor_bytes = _FREE_BYTES + file_bytes + more

    def take_step(self, arg: object) -> None:
        """Count one opcode and check its argument.

        Raises:
            CheckpointError: There are too many, or the argument is a number of too many digits.
        """
        self._take(1)
        if isinstance(arg, int) and not -_MAX_INTEGER < arg < _MAX_INTEGER:
            raise above_budget(
                "decimal digits of an integer", f"about {arg.bit_length() * 3 // 10}", MAX_DIGITS
            )

    def take_copies(self, *values: object) -> None:
        """Count the containers and bytes that a call in the pickle copies, or that become an object's state.

        A call may copy what the file holds once, and objects may share one state that is walked for each of them.

        Raises:
            CheckpointError: There are too many items or bytes.
        """
        for value in values:
            if isinstance(value, bytes):
                self._made_bytes += len(value)
                if self._made_bytes > MAX_PICKLE_BYTES:
                    raise above_budget("bytes made by calls", self._made_bytes, MAX_PICKLE_BYTES)
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self._take(len(value))

    def take_tensor(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Count one tensor as it is going to be read: floating point as float32, the rest as int64.

        Raises:
            CheckpointError: There are too many tensors, or they have too many elements for a file of this size, which
                may repeat what it holds (strides of zero, overlapping views).
        """
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise above_budget("tensors", self._tensors, MAX_TENSORS)
        elements = math.prod(shape)
        self._tensor_bytes += elements * (_FLOAT_BYTES if dtype.is_floating_point else _INTEGER_BYTES)
        if self._tensor_bytes > self._max_tensor_bytes:
            raise CheckpointError(
                f"the tensors up to one of shape {tuple(shape)} take {self._tensor_bytes} bytes as float32 and int64, "
                f"the limit is {self._max_tensor_bytes}: {_FACTOR} times the file's size, or the size and "
                f"the available memory if that is less, and {_FREE_BYTES} more. "
                "Save contiguous copies of the tensors in use."
            )

    def _take(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise above_budget("objects in the pickle", f"more than {MAX_STEPS}", MAX_STEPS)


class BudgetedReader:
    """Read a file for `pickletools.genops` and refuse a string or a pickle longer than the budget allows."""

    def __init__(self, file: IO[bytes]) -> None:
        """Keep the file, which is read from its current position."""
        self._file = file
        self._left = MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer at the end of the file.

        Raises:
            CheckpointError: The size is above the budget.
        """
        if size > MAX_TEXT_BYTES:
            raise above_budget("bytes of one string", size, MAX_TEXT_BYTES)
        self._take(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        """Read up to the next line feed.

        Raises:
            CheckpointError: The line is longer than the budget allows.
        """
        line = self._file.readline(MAX_TEXT_BYTES + 1)
        if len(line) > MAX_TEXT_BYTES:
            raise above_budget("bytes of one string", f"more than {MAX_TEXT_BYTES}", MAX_TEXT_BYTES)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise above_budget("bytes of the pickle", f"more than {MAX_PICKLE_BYTES}", MAX_PICKLE_BYTES)
