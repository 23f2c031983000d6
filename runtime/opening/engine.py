"""The table of the engines, and the functions that look an engine up in it.

``ENGINES`` is the only list of engines. The default, the error messages and ``flowedge doctor`` are read from it. The
file of an engine imports its library at the top, and is itself imported only when the engine is opened.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, cast

from flowedge.errors import EngineUnavailableError
from flowedge.packages import missing_wheel, pip_install
from flowedge.runtime.device.machine import find_jetson, find_nvidia_driver, without_driver
from flowedge.runtime.opening.engine_contract import EngineModule, EngineSpec

NVIDIA_GPU: Final = "nvidia gpu"
"""The kind of device of the engines that take the number of a GPU."""

_DRIVER_OF_CUDA_13: Final = 580
_JETPACK_OF_CUDA_13: Final = 7

_NUMBER: Final = re.compile(r"[0-9]{1,3}")

ENGINES: Final[Mapping[str, EngineSpec]] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            EngineSpec(
                name="onnxruntime-cpu",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort",
                device="cpu",
                order=4,
            ),
            EngineSpec(
                name="openvino",
                module="flowedge.runtime.engines.openvino",
                needs="openvino",
                extra="openvino",
                device="cpu",
                order=5,
            ),
            EngineSpec(
                name="tensorrt",
                module="flowedge.runtime.engines.tensorrt",
                needs="tensorrt",
                extra="tensorrt-cu12",
                device=NVIDIA_GPU,
                order=0,
                compiled=True,
            ),
            EngineSpec(
                name="tensorrt-rtx",
                module="flowedge.runtime.engines.tensorrt_rtx",
                needs="tensorrt_rtx",
                extra="rtx",
                device=NVIDIA_GPU,
                order=1,
                compiled=True,
            ),
            EngineSpec(
                name="onnxruntime-cuda",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device=NVIDIA_GPU,
                order=2,
            ),
            EngineSpec(
                name="onnxruntime-cuda-nhwc",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device=NVIDIA_GPU,
                order=3,
                options=(("prefer_nhwc", "1"),),
            ),
            EngineSpec(
                name="onnxruntime-cuda-tf32",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device=NVIDIA_GPU,
                order=None,
                options=(("use_tf32", "1"),),
                covered_by="fp16",
            ),
            EngineSpec(
                name="onnxruntime-tensorrt",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device=NVIDIA_GPU,
                order=None,
                compiled=True,
            ),
            EngineSpec(
                name="openvino:GPU",
                module="flowedge.runtime.engines.openvino",
                needs="openvino",
                extra="openvino",
                device="intel gpu",
                order=None,
            ),
            EngineSpec(
                name="openvino:NPU",
                module="flowedge.runtime.engines.openvino",
                needs="openvino",
                extra="openvino",
                device="intel npu",
                order=None,
            ),
        )
    }
)


NULL: Final = EngineSpec(
    name="null",
    module="flowedge.runtime.engines.null",
    needs="numpy",
    extra="",
    device="cpu",
    order=None,
)
"""An engine that computes nothing, for tests.

The null engine is not one of ``ENGINES``, so no command lists, tries or times it.
"""

JUDGE: Final = "onnxruntime-cpu"
"""The engine that verifies exports and gates precisions. A verdict on a graph must not depend on the machine."""

AUTO: Final = "auto"
"""The word in place of a precision for the fastest graph that is right here, see `flowedge.runtime.opening.auto`."""


def library_version(spec: EngineSpec) -> str:
    """Give the version of an engine's library, which must be importable."""
    return str(getattr(importlib.import_module(spec.needs), "__version__", "unknown"))


def choosable_engines() -> tuple[EngineSpec, ...]:
    """Give the engines that may be chosen without a name and can be imported here, in the order of choice."""
    found = []
    for spec in engines_in_order():
        with contextlib.suppress(EngineUnavailableError):
            if spec.order is not None and engine_module(spec):
                found.append(spec)
    return tuple(found)


def engines_in_order() -> list[EngineSpec]:
    """Give all engines: first those that are chosen without a name, by their order, then those that must be named."""
    return sorted(ENGINES.values(), key=lambda spec: math.inf if spec.order is None else spec.order)


def is_installed(spec: EngineSpec) -> bool:
    """True when the engine's package can be found, which does not mean that it can be imported."""
    return importlib.util.find_spec(spec.needs) is not None


def engine_spec(name: str) -> EngineSpec:
    """Find the facts of an engine.

    Args:
        name: A name of ``ENGINES``, or the name of ``NULL``. The name of an engine on NVIDIA GPUs may end in the number
            of the GPU, such as ``tensorrt:1``. The first GPU has the number 0, which is the default.

    Raises:
        EngineUnavailableError: There is no engine of this name.
    """
    spec = NULL if name == NULL.name else ENGINES.get(name)
    if spec is not None:
        return spec
    listed, _, number = name.rpartition(":")
    spec = ENGINES.get(listed)
    if spec is not None and spec.device == NVIDIA_GPU and _NUMBER.fullmatch(number):
        return replace(spec, name=f"{listed}:{int(number)}", index=int(number)) if int(number) else spec
    raise EngineUnavailableError(
        f"there is no engine {name!r}. Choose one of: {', '.join(ENGINES)}. "
        "An engine on NVIDIA GPUs takes the number of a GPU, such as tensorrt:1."
    )


def engine_module(spec: EngineSpec) -> EngineModule:
    """Import the file of an engine. An error tells a package that is not installed from one that cannot be imported.

    Raises:
        EngineUnavailableError: The engine's package is not installed or cannot be imported.
    """
    if not is_installed(spec):
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {spec.needs}, which is not installed. {how_to_install(spec)}"
        )
    try:
        importlib.import_module(spec.needs)
    except Exception as error:  # a broken native library raises more than ImportError
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {spec.needs}, which is installed but cannot be imported: "
            f"{type(error).__name__}: {error}. "
            f"Reinstall it with: {pip_install(extra_of(spec))} --force-reinstall"
        ) from error
    try:
        return cast(EngineModule, importlib.import_module(spec.module))
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {error.name}, which is not installed. {how_to_install(spec)}"
        ) from error


def how_to_install(spec: EngineSpec) -> str:
    """Give the command that installs an engine's package. On a Jetson, TensorRT comes with JetPack.

    An engine whose package the package index does not have for this machine gets a sentence that tells so.
    """
    jetson = find_jetson() if spec.listed == "tensorrt" else None
    if jetson is not None:
        cuda = 13 if _major(jetson.jetpack) >= _JETPACK_OF_CUDA_13 else 12
        return (
            "On a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and give the virtual environment "
            "the system's packages (python3 -m venv --system-site-packages). Its CUDA binding is the one of "
            f"JetPack's CUDA: pip install 'cuda-bindings=={cuda}.*'"
        )
    extra = extra_of(spec)
    if lacking := missing_wheel(extra):
        return f"It cannot be installed with pip: {lacking}."
    driver = without_driver() if spec.device == NVIDIA_GPU else ""
    return f"Install it with: {pip_install(extra)}" + (driver and f".{driver}")


def extra_of(spec: EngineSpec) -> str:
    """Give the extra that installs an engine's package. TensorRT's depends on the CUDA that the driver supports."""
    if spec.listed == "tensorrt" and _major(find_nvidia_driver().version) >= _DRIVER_OF_CUDA_13:
        return "tensorrt-cu13"
    return spec.extra


def _major(version: str) -> int:
    number = version.partition(".")[0]
    return int(number) if number.isdecimal() else 0
