"""Find the folder and the size limit of the device cache, and check that the folder can be used."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flowedge.errors import EngineCacheError

DEFAULT_SIZE: Final = "20G"
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

PARTS: Final = MappingProxyType(
    {
        "engines": "engines that were compiled for this machine",
        "timing": "TensorRT's timings, which make the next build faster",
        "kernels": "kernels of TensorRT for RTX, which make the next start faster",
        "onnxruntime-tensorrt": "files that ONNX Runtime stores",
        "openvino": "files that OpenVINO stores",
        "ranges": "ranges of tensors that were found on images",
        "precision": "the fastest precision, as it was measured",
        "proofs": "graphs that passed their self-test here",
    }
)
"""The folders of the cache, and their contents. Nothing else in the cache's folder is read, counted or deleted."""

NOWHERE: Final = Path(os.devnull) / "flowedge"
"""The folder of a user without a home. Nothing can be made below it, not even by root."""


def cache_folder() -> Path:
    """Return ``FLOWEDGE_CACHE_DIR``, else XDG's folder for caches. The folder need not exist.

    Returns:
        ``NOWHERE`` where neither variable is set and the user has no home, as in a container that was started for a
        number.
    """
    own = os.environ.get("FLOWEDGE_CACHE_DIR")
    if own:
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg) / "flowedge"
    home = _home()
    return NOWHERE if home is None else home / ".cache" / "flowedge"


def cache_size() -> int:
    """Return ``FLOWEDGE_CACHE_SIZE`` in bytes, else 20 GB.

    Raises:
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    text = os.environ.get("FLOWEDGE_CACHE_SIZE") or DEFAULT_SIZE
    size = re.fullmatch(r"(\d{1,12})([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if size is None:
        raise EngineCacheError(
            f"FLOWEDGE_CACHE_SIZE must be a number of bytes such as 500M or 20G, got {text!r}."
        )
    return int(size[1]) * _UNITS[size[2]]


def why_no_cache(folder: Path) -> str:
    """Return the reason why a folder cannot be the cache, or an empty text where it can. The folder need not exist.

    A folder that holds other files is refused, so that none of them is counted or deleted.
    """
    if folder == NOWHERE:
        return f"the user {os.getuid()} has no home folder (HOME is {os.environ.get('HOME', '')!r})"
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    strange = sorted(names.difference(PARTS, {"lost+found"}))  # the last is a file system's own
    if strange:
        return f"{folder} holds other files, such as {strange[0]}, and is no cache"
    return ""


def _home() -> Path | None:
    """Return the user's home, None where there is none or it does not exist."""
    named = os.environ.get("HOME")
    if not named:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a number without a user
            return None
    return Path(named) if os.path.isabs(named) and os.path.isdir(named) else None
