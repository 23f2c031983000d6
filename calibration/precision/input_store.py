"""Keep the prepared inputs of the gate's frames in a temporary file."""

from __future__ import annotations

import math
import tempfile
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_INPUT_BYTES: Final = 1 << 30  # The largest size of the prepared inputs on disk.


class InputStore:
    """The prepared inputs of frames in a temporary file, up to a limit."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="flowedge-inputs-")  # noqa: SIM115, closed with this object
        self._lock = Lock()
        self._places: list[tuple[int, tuple[int, ...], np.dtype[Any]] | None] = []
        self._size = 0

    def add(self, image: NDArray[Any]) -> None:
        """Store the input of the next frame, unless the file would become too large."""
        if self._size + image.nbytes > _INPUT_BYTES:
            self._places.append(None)
            return
        self._file.write(np.ascontiguousarray(image).tobytes())
        self._places.append((self._size, image.shape, image.dtype))
        self._size += image.nbytes

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def read(self, number: int) -> NDArray[Any] | None:
        """Return the input of a frame, or None where it is not stored. Threads may call this method."""
        place = self._places[number]
        if place is None:
            return None
        begin, shape, dtype = place
        with self._lock:
            self._file.seek(begin)
            data = self._file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)
