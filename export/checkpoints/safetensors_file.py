"""Read state dicts in the format safetensors: a header of names, types and places, and the values behind it.

The format holds tensors by name and text, and nothing that could run. So such a file holds as little beside the tensors
as a bare state dict of ``torch.save``.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints.budget import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS, above_budget
from flowedge.files import open_regular_file

HEAD_BYTES: Final = 9
_HEADER_LENGTH: Final = struct.Struct("<Q")
_MAX_HEADER_BYTES: Final = 32 << 20


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file of ``size`` bytes that begins with ``head`` is safetensors: a length and a JSON object."""
    return head[8:9] == b"{" and 0 < _HEADER_LENGTH.unpack(head[:8])[0] <= size - 8


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    The library checks that the values of the tensors lie in the file one after the other, without a gap or an overlap.

    Raises:
        CheckpointError: The file is cut off, malformed or above the budget.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular_file(path) as file:
            head = file.read(8)
        length = _HEADER_LENGTH.unpack(head)[0] if len(head) == _HEADER_LENGTH.size else 0
        if length > _MAX_HEADER_BYTES and length <= path.stat().st_size:
            raise above_budget("bytes of the header", length, _MAX_HEADER_BYTES)
        # The library takes no name that is not UTF-8, and the system has another name for an open file.
        with (
            open_regular_file(path) as file,
            safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt") as opened,
        ):
            names = list(opened.keys())
            if len(names) > MAX_TENSORS:
                raise above_budget("tensors", len(names), MAX_TENSORS)
            longest = max(map(len, names), default=0)
            if longest > MAX_NAME:
                raise above_budget("characters of a name", longest, MAX_NAME)
            for name in names:
                axes = len(opened.get_slice(name).get_shape())
                if axes > MAX_DIMENSIONS:
                    raise above_budget(f"dimensions of {name}", axes, MAX_DIMENSIONS)
            return {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"it cannot be read as safetensors: {error}. Copy the file again.") from error
