"""Read the constants of an ONNX file at the places where the product writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.onnx_constants import _find, _reading


def read_constants(path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return the values of named initializers, in the order of ``names``.

    Raises:
        BundleError: The file cannot be read or is not ONNX, a name is not there or there twice, or the elements are
            not stored as raw data of a NumPy type inside the file.
    """
    with _reading(path) as file:
        found = {}
        for name, place in _find(file, names).items():
            file.seek(place.offset)
            data = file.read(math.prod(place.shape) * place.dtype.itemsize)
            found[name] = np.frombuffer(data, place.dtype).reshape(place.shape).copy()
        return found
