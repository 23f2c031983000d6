"""Prove by the self-test that an engine computes a bundle's graph rightly on this machine, before it judges parts.

An engine's library may hold a kernel that is wrong on one processor only. So the first opening replays the bundle's
self-test, and an engine whose answers are outside the limits of its precision is refused.

A passed self-test is stored in the device cache under everything that it depends on (`_facts`): the graph, the
self-test, the library, the processor, the settings of the environment. The record holds those facts and nothing else,
and counts only where each of its bytes is as expected. A failed self-test is never stored. Engines on a GPU
whose file or driver cannot be named by such facts prove themselves at every opening.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import cv2
import msgspec
import numpy as np

from flowedge.bundle import Bundle
from flowedge.errors import EngineCacheError, EngineUnavailableError, EngineWrongError
from flowedge.runtime import verify
from flowedge.runtime.device.device_cache import DeviceCache, device_cache
from flowedge.runtime.device.engine_file import graph_hash
from flowedge.runtime.device.machine import cpu_flags, cpu_name, find_nvidia_driver
from flowedge.runtime.opening.engine import engine_spec, library_version
from flowedge.runtime.opening.engine_contract import EngineSpec, Opened
from flowedge.runtime.opening.selftest import ANSWERS, FRAMES, rounded_answers_file
from flowedge.version import __version__

_LOG: Final = logging.getLogger(__name__)

# Settings of the libraries that may choose another kernel, a math library's instruction set, or another library.
_SETTINGS: Final = (
    *(
        "ONEDNN_",
        "DNNL_",
        "OV_",
        "OPENVINO_",
        "ORT_",
        "ONNXRUNTIME_",
        "MLAS_",
        "OPENBLAS_",
        "OMP_",
        "KMP_",
        "TBB_",
    ),
    *("CUDA_", "CUDNN_", "NVIDIA_", "GLIBC_TUNABLES", "LD_PRELOAD", "LD_LIBRARY_PATH"),
)


def prove(bundle: Bundle, engine: Opened, *, threads: int | None, parts: Sequence[str] = ()) -> None:
    """Replay the bundle's self-test on an engine, unless it once passed under the same circumstances.

    Args:
        bundle: A verified bundle.
        engine: An engine that has loaded one of its graphs.
        threads: The number of CPU threads that the engine was opened with.
        parts: The hashes of the graphs that the engine runs in place of the bundle's own.

    Raises:
        EngineWrongError: An answer differs from the recorded one by more than the limit of the precision.
        EngineUnavailableError: The device stopped.
        BundleError: The bundle has no self-test.
    """
    spec = engine_spec(engine.name)
    cache = _cache() if _can_be_remembered(spec) else None
    name, record = "", b""
    if cache is not None:
        record = _facts(bundle, engine.precision, spec, threads, parts)
        name = f"proofs/{hashlib.sha256(record).hexdigest()[:32]}.json"
        if cache.read_extra(name) == record:
            _LOG.info("%s passed the self-test of %s here before", engine.name, engine.precision)
            return
    try:
        failed = [check for check in verify.replay_selftest(bundle, engine) if not check.passed]
    except EngineUnavailableError as error:
        raise EngineUnavailableError(f"{bundle.path} cannot be proven: {error}") from error
    if failed:
        numbers = "; ".join(f"{check.name}: {check.value:.2g}, limit {check.limit:.0e}" for check in failed)
        raise EngineWrongError(
            f"{engine.name} {library_version(spec)} computes the {engine.precision} graph of {bundle.path} wrongly on "
            f"this machine ({cpu_name()}), so it judges no part: {numbers}. See all of it with: flowedge verify "
            f"{bundle.path} --engine {engine.name} --precision {engine.precision}. Or name another."
        )
    _LOG.info("%s passed the self-test of %s", engine.name, engine.precision)
    if cache is not None:
        cache.write_extra(name, record)


def _cache() -> DeviceCache | None:
    """Give the user's cache. Where its settings are wrong, there is none and the proof runs at every opening."""
    with contextlib.suppress(EngineCacheError):
        return device_cache()
    return None


def _can_be_remembered(spec: EngineSpec) -> bool:
    """Return True where facts name the whole engine, so that its proof can be stored.

    No facts can name a compiled file, or Intel's driver of a GPU.
    """
    return not spec.compiled and not spec.device.startswith("intel")


def _facts(
    bundle: Bundle, precision: str, spec: EngineSpec, threads: int | None, parts: Sequence[str] = ()
) -> bytes:
    """Write down in JSON everything that a passed self-test depends on."""
    manifest = bundle.manifest
    library, module = importlib.import_module(spec.needs), importlib.import_module(spec.module)
    described = msgspec.json.encode(
        [
            *(manifest.family, manifest.image_size, manifest.frame_size, manifest.levels, manifest.nfa),
            *(manifest.preprocessing, manifest.graph(precision).scoring),
        ]
    )
    self_test = (FRAMES, ANSWERS, rounded_answers_file("pruned"), rounded_answers_file(precision))
    driver = find_nvidia_driver()
    return msgspec.json.encode(
        {
            "what": "this graph passed this self-test under these circumstances",
            "graph": graph_hash(bundle, precision),
            "parts": list(parts),
            "precision": precision,
            "manifest": hashlib.sha256(described).hexdigest(),
            "self-test": [one.sha256 for one in manifest.files if one.path in self_test],
            "engine": spec.name,
            "library": [spec.needs, library_version(spec), *_place(library.__file__)],
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "flowedge": [__version__, *(_hash_of(file) for file in (verify.__file__, *_files_of(module)))],
            "processor": [cpu_name(), hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()],
            "gpu": [driver.version, *driver.names],
            "settings": {
                ascii(key): ascii(value)
                for key, value in sorted(os.environ.items())
                if key.startswith(_SETTINGS)
            },
            "threads": threads,
        }
    )


def _place(file: str | None) -> tuple[str, int]:
    """Return place and time (ns since 1970) of a package's installation, because two builds may have one version."""
    if file is None:
        return "", 0
    return ascii(file), Path(file).stat().st_mtime_ns


def _files_of(engine: ModuleType) -> list[str]:
    """Return the file of an engine and the files beside it whose names begin as its name does."""
    file = Path(str(engine.__file__))
    return sorted(map(str, file.parent.glob(f"{file.stem}*.py")))


def _hash_of(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
