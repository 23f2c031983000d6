"""Arrays in NumPy's ``.npz`` form, the same bytes at any time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# An archive cannot hold dates outside 1980 to 2107, and `numpy.savez` writes the clock's.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


def npz_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack named arrays as ``numpy.savez_compressed`` does, without the time of day.

    Raises:
        ValueError: An array holds Python objects.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()
