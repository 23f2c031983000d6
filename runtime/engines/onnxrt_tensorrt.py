"""Keep the engines that ONNX Runtime builds through TensorRT in the device cache, and name what they depend on."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final, TypeAlias

import onnxruntime as ort

from flowedge.runtime.device.device_cache import DeviceCache
from flowedge.runtime.device.engine_file import EngineFacts
from flowedge.runtime.device.machine import find_jetson, find_nvidia_driver
from flowedge.runtime.opening.engine_contract import Opening

TENSORRT: Final = "TensorrtExecutionProvider"
"""ONNX Runtime's name of the provider."""

Providers: TypeAlias = list[tuple[str, dict[str, str]]]
"""The providers of a session by their names, each with its options, in the order in which they take nodes."""


def with_engines(providers: Providers, opening: Opening, cache: DeviceCache, facts: EngineFacts) -> Providers:
    """Put TensorRT's caches into the device cache, and name the sizes that an engine is built for."""
    shapes = {name: spec.shape for name, spec in opening.source.inputs.items()}
    sizes = [
        ",".join(
            f"{name}:{'x'.join(str(batch if size is None else size) for size in shape)}"
            for name, shape in shapes.items()
        )
        for batch in facts.batches
    ]
    engines, timing = cache.make_folder(f"onnxruntime-tensorrt/{facts.key}"), cache.make_folder("timing")
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timing),
        "trt_profile_min_shapes": sizes[0],
        "trt_profile_opt_shapes": sizes[1],
        "trt_profile_max_shapes": sizes[2],
    }
    return [(name, own | options if name == TENSORRT else own) for name, own in providers]


def engines_of(cache: DeviceCache, facts: EngineFacts) -> Path:
    """Return the folder of the engines that these facts name."""
    return cache.folder / "onnxruntime-tensorrt" / facts.key


def has_engines(cache: DeviceCache, facts: EngineFacts) -> bool:
    """Return True where a folder holds engines for ONNX Runtime, and nothing but plain files."""
    files = list(engines_of(cache, facts).glob("*"))
    are_plain = all(file.is_file() and not file.is_symlink() for file in files)
    return are_plain and any(file.suffix == ".engine" for file in files)


def facts_of(opening: Opening, batches: tuple[int, int, int]) -> EngineFacts:
    """Collect the facts that the engines of a graph depend on."""
    jetson = find_jetson()
    gpu = find_nvidia_driver()
    return EngineFacts(
        engine=opening.spec.listed,
        version=f"{ort.__version__} with TensorRT {_tensorrt_version()}",
        graph=opening.source.sha256,
        precision=opening.precision,
        device=jetson.model if jetson is not None else ", ".join(gpu.names),
        capability="",
        driver=jetson.l4t if jetson is not None else gpu.version,
        batches=batches,
    )


def _tensorrt_version() -> str:
    """Return the version of the TensorRT that the loader finds, in TensorRT's own form (100300 is 10.3.0)."""
    for major in (11, 10, 8):
        try:
            return str(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion())
        except (OSError, AttributeError):
            continue
    return "unknown"
