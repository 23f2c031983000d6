"""Diagnose this machine: its facts, the engines that work on it, and the packages that it lacks."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flowedge.packages import installed_version, pip_install
from flowedge.runtime.device.cores import Cores, find_cores
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.machine import (
    Jetson,
    Memory,
    NvidiaDriver,
    cpu_extensions,
    cpu_name,
    find_jetson,
    find_memory,
    find_nvidia_driver,
    slow_precisions,
    system_name,
)
from flowedge.runtime.opening.engine_status import EngineStatus, available_engines
from flowedge.version import __version__

_EXPORT_PACKAGES: Final = ("torch", "torchvision", "timm", "FrEIA", "onnx", "onnxscript", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The facts of a machine that decide which engines run on it.

    Attributes:
        flowedge: The version of FlowEdge.
        python: The version of Python.
        platform: The operating system and the processor's architecture.
        cpu: The name of the processor.
        cpu_extensions: The processor's extensions that matter for inference, such as ``avx512_vnni``.
        cores: The cores that this process may use.
        memory: The memory. The value is None where the system does not tell.
        jetson: The facts of a Jetson. The value is None on other machines.
        nvidia: The driver of NVIDIA's GPUs, with an empty version where there is none.
        engine_cache: The folder of the device cache, or ``none`` with the reason.
    """

    flowedge: str
    python: str
    platform: str
    cpu: str
    cpu_extensions: tuple[str, ...]
    cores: Cores
    memory: Memory | None
    jetson: Jetson | None
    nvidia: NvidiaDriver
    engine_cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The machine, its engines, and the optional packages.

    Attributes:
        machine: The facts of the machine.
        engines: The status of every engine, those that may be chosen without a name first.
        order: The names of the engines that may be chosen without a name, in the order of choice.
        default: The first of ``order`` that works here and needs no build. The value is None where there is no such
            engine.
        compiled: The names in ``order`` that work here and load what ``flowedge build`` has compiled.
        slow: A sentence about each precision that gains nothing on the CPU here.
        export: The versions of the packages that exporting needs. A package that is not installed has the value None.
        numba: The version of Numba, which compiles the NFA tree. The value is None where Numba is not installed.
    """

    machine: MachineFacts
    engines: tuple[EngineStatus, ...]
    order: tuple[str, ...]
    default: str | None
    compiled: tuple[str, ...]
    slow: Mapping[str, str]
    export: Mapping[str, str | None]
    numba: str | None

    @property
    def is_ready(self) -> bool:
        """True where at least one engine runs bundles on this machine."""
        return any(status.works for status in self.engines)

    @property
    def verdict(self) -> str:
        """One sentence that says whether this machine can run bundles, on what, and what it lacks."""
        working: dict[str, list[str]] = {"cpu": [], "gpu": [], "npu": []}
        for status in self.engines:
            if status.works:
                working[status.spec.device.rpartition(" ")[2]].append(status.spec.name)
        places = [
            f"on the {kind.upper()} with {' or '.join(names)}" for kind, names in working.items() if names
        ]
        if not places:
            return (
                "This machine cannot run bundles yet, since no engine works here. The smallest one comes with: "
                f"{pip_install('ort')}"
            )
        ready = f"This machine is ready to run bundles {' and '.join(places)}"
        if self.machine.nvidia.names and not working["gpu"]:
            gpus = ", ".join(self.machine.nvidia.names)
            return f"{ready}, but no engine works on its GPU ({gpus}). The reasons are below."
        return f"{ready}."


def doctor() -> Diagnosis:
    """Try every engine on a small graph, and collect the facts of this machine.

    Raises:
        EngineCacheError: The settings of the device cache are wrong.

    Examples:
        >>> import flowedge
        >>> diagnosis = flowedge.doctor()
        >>> diagnosis.default in diagnosis.order
        True
    """
    engines = available_engines()
    ordered = [status for status in engines if status.spec.order is not None]
    works = [status.spec for status in ordered if status.works]
    return Diagnosis(
        machine=_facts(),
        engines=engines,
        order=tuple(status.spec.name for status in ordered),
        default=next((spec.name for spec in works if not spec.compiled), None),
        compiled=tuple(spec.name for spec in works if spec.compiled),
        slow=slow_precisions(),
        export={name: installed_version(name) for name in _EXPORT_PACKAGES},
        numba=installed_version("numba"),
    )


def _facts() -> MachineFacts:
    cache = device_cache()
    return MachineFacts(
        flowedge=__version__,
        python=platform.python_version(),
        platform=system_name(),
        cpu=cpu_name(),
        cpu_extensions=cpu_extensions(),
        cores=find_cores(),
        memory=find_memory(),
        jetson=find_jetson(),
        nvidia=find_nvidia_driver(),
        engine_cache=f"none: {cache.problem}" if cache.problem else str(cache.folder),
    )
