"""The engines: what each one is, which ones there are, and what the file of one must hold.

``ENGINES`` is the only list: the default, the error messages and ``flowedge doctor`` are read from it. An
engine's file imports its library plainly at the top, and is itself imported only when it is opened.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import EngineUnavailableError
from flowedge.packages import pip_install
from flowedge.progress import Reports
from flowedge.runtime.device_cache import CachedFile, DeviceCache
from flowedge.runtime.machine import find_jetson


class Engine(Protocol):
    """A graph, loaded on a device. An engine only computes: its caller has checked the image.

    Threads may share an engine. Each call gets the answers to its own image, and `close` waits for no call: a call that
    has begun ends with its answers, and a later one with an error.

    Attributes:
        name: The engine's name in ``ENGINES``.
        reason: Why this engine computes: somebody named it, or the engines before it could not.
        precision: The precision of the loaded graph.
        output_names: The names of the graph's outputs, in the graph's order.
        batches: The smallest and the largest number of images of a run; None where every number runs.
    """

    name: str
    reason: str
    precision: str
    output_names: tuple[str, ...]
    batches: tuple[int, int] | None

    def infer(self, image: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run the graph once.

        Args:
            image: The graph's one input, C-contiguous: the network's, ``(N, 3, H, W)`` float32, resized and
                normalised as the manifest says; or, where the manifest has a ``frame_size``, frames as they are,
                ``(N, H, W, 3)`` uint8, RGB.

        Returns:
            Per output name: ``score`` ``(N,)``; ``anomaly_map`` ``(N, 1, H, W)``; ``level_i``, and
            ``energy_i`` and ``count_i`` where the manifest's ``nfa`` says so, ``(N, 1, h, w)``; all float32
            and owned by the caller. For scores and maps, larger is more anomalous.

        Raises:
            EngineUnavailableError: The device stopped, for instance for lack of memory.
            ValueError: The engine was closed.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine cannot be used after it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The facts of one engine.

    Attributes:
        name: What the user types.
        module: The file to import when it is opened.
        needs: The package that must be importable.
        extra: The extra of FlowEdge that installs it.
        device: What it computes on.
        order: When none is named, the first by this number that opens is taken; None: only when it is named.
        compiled: It opens only what ``flowedge build`` has compiled for this machine.
    """

    name: str
    module: str
    needs: str
    extra: str
    device: str
    order: int | None
    compiled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an engine is to load.

    Attributes:
        spec: The engine's facts.
        bundle: A verified bundle.
        precision: Which of its graphs; there is one.
        threads: How many CPU threads one inference uses; None leaves it to the engine.
    """

    spec: EngineSpec
    bundle: Bundle
    precision: str
    threads: int | None

    @property
    def graph(self) -> Path:
        """The graph's file."""
        return self.bundle.graph_path(self.precision)


DEFAULT_BATCHES: Final = (1, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The wishes that a user may have of a builder.

    Attributes:
        batches: The smallest, usual and largest number of images of a run; equal numbers fix it.
        dla: Run every layer of the backbone that fits on a Jetson's deep learning accelerator.
        capabilities: The compute capabilities, such as 8.9, that TensorRT for RTX builds for. An empty tuple builds for
            every capability from Ampere on.
    """

    batches: tuple[int, int, int] = DEFAULT_BATCHES
    dla: bool = False
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """The order to build one engine.

    Attributes:
        opening: The graph and the engine.
        options: The user's wishes.
        cache: The cache that the built engine goes to.
        reports: Told of each step, and in sentences of what happens.
    """

    opening: Opening
    options: BuildOptions
    cache: DeviceCache
    reports: Reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine in the cache.

    Attributes:
        file: The engine's file, with the facts that it was built from.
        was_built: True where it was built just now, False where the cache had it.
        seconds: The time that building took.
        notes: Sentences about the engine, such as which layers do not run on the accelerator.
    """

    file: CachedFile
    was_built: bool
    seconds: float
    notes: tuple[str, ...] = ()


class EngineModule(Protocol):
    """What each file of ``flowedge.runtime.engines`` that an ``EngineSpec`` names holds."""

    def load(self, opening: Opening) -> Engine:
        """Load a graph and hold its inputs and outputs to ``check_contract``."""
        ...

    def probe(self, spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a graph with one input and one output of the same shape."""
        ...

    def build(self, building: Building) -> Built:
        """Compile a graph for this machine; only where the ``EngineSpec`` says so."""
        ...


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
                order=3,
            ),
            EngineSpec(
                name="openvino",
                module="flowedge.runtime.engines.openvino",
                needs="openvino",
                extra="openvino",
                device="cpu",
                order=4,
            ),
            EngineSpec(
                name="tensorrt",
                module="flowedge.runtime.engines.tensorrt",
                needs="tensorrt",
                extra="tensorrt",
                device="nvidia gpu",
                order=0,
                compiled=True,
            ),
            EngineSpec(
                name="tensorrt-rtx",
                module="flowedge.runtime.engines.tensorrt_rtx",
                needs="tensorrt_rtx",
                extra="rtx",
                device="nvidia gpu",
                order=1,
                compiled=True,
            ),
            EngineSpec(
                name="onnxruntime-cuda",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device="nvidia gpu",
                order=2,
            ),
            EngineSpec(
                name="onnxruntime-tensorrt",
                module="flowedge.runtime.engines.onnxrt",
                needs="onnxruntime",
                extra="ort-gpu",
                device="nvidia gpu",
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
"""An engine that computes nothing, for tests. It is not one of ``ENGINES``, so no command lists, tries or times it."""

JUDGE: Final = "onnxruntime-cpu"
"""The engine that verifies exports and gates precisions. A verdict on a graph must not depend on the machine."""

AUTO: Final = "auto"
"""In place of a precision: the fastest graph that is right here, see `flowedge.runtime.auto`."""


def library_version(spec: EngineSpec) -> str:
    """Of an engine's library, which must be importable."""
    return str(getattr(importlib.import_module(spec.needs), "__version__", "unknown"))


def choosable_engines() -> tuple[EngineSpec, ...]:
    """Those that may be chosen without being named and that can be imported here, in the order of choice."""
    found = []
    for spec in engines_in_order():
        with contextlib.suppress(EngineUnavailableError):
            if spec.order is not None and engine_module(spec):
                found.append(spec)
    return tuple(found)


def engines_in_order() -> list[EngineSpec]:
    """Give all engines: first those that are chosen without a name, by their order, then those that must be named."""
    return sorted(ENGINES.values(), key=lambda spec: math.inf if spec.order is None else spec.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What one engine can do on this machine.

    Attributes:
        spec: The engine.
        installed: Its package is there.
        version: The version of the package, None when it cannot be imported.
        works: It ran a small graph and the answer was right.
        problem: Why it does not work and what to do; empty when it does.
    """

    spec: EngineSpec
    installed: bool
    version: str | None
    works: bool
    problem: str


def available_engines() -> tuple[EngineStatus, ...]:
    """Try every engine of the table on a graph of one addition, in their order."""
    return tuple(_status(spec) for spec in engines_in_order())


def _status(spec: EngineSpec) -> EngineStatus:
    version: str | None = None
    problem = ""
    x = np.array([1.0, -2.0, 0.5], dtype=np.float32)
    try:
        module = engine_module(spec)
        version = library_version(spec)
        answer = module.probe(spec, PROBE_GRAPH, x)
        if not np.array_equal(answer, x + x):
            problem = f"{spec.name} computed {answer} for {x + x}. Reinstall {spec.needs}."
    except EngineUnavailableError as error:
        problem = str(error)
    return EngineStatus(
        spec=spec, installed=_is_installed(spec), version=version, works=not problem, problem=problem
    )


def _is_installed(spec: EngineSpec) -> bool:
    return importlib.util.find_spec(spec.needs) is not None


def engine_spec(name: str) -> EngineSpec:
    """Find the facts of an engine.

    Args:
        name: A name of ``ENGINES``, or the name of ``NULL``.

    Raises:
        EngineUnavailableError: There is none of this name.
    """
    spec = NULL if name == NULL.name else ENGINES.get(name)
    if spec is None:
        raise EngineUnavailableError(f"there is no engine {name!r}. Choose one of: {', '.join(ENGINES)}.")
    return spec


def engine_module(spec: EngineSpec) -> EngineModule:
    """The file of an engine. Installed is not importable: the two are told apart.

    Raises:
        EngineUnavailableError: Its package is not installed or cannot be imported.
    """
    if not _is_installed(spec):
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {spec.needs}, which is not installed. {how_to_install(spec)}"
        )
    try:
        importlib.import_module(spec.needs)
    except Exception as error:  # a broken native library raises more than ImportError
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {spec.needs}, which is installed but cannot be imported: "
            f"{type(error).__name__}: {error}. "
            f"Reinstall it with: {pip_install(spec.extra)} --force-reinstall"
        ) from error
    try:
        return cast(EngineModule, importlib.import_module(spec.module))
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            f"the engine {spec.name} needs the package {error.name}, which is not installed. {how_to_install(spec)}"
        ) from error


def how_to_install(spec: EngineSpec) -> str:
    """The command that installs an engine's package; on a Jetson TensorRT is JetPack's own."""
    if spec.name == "tensorrt" and find_jetson() is not None:
        return (
            "On a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and give the virtual environment "
            "the system's packages (python3 -m venv --system-site-packages). Its CUDA binding, of JetPack's CUDA: "
            "pip install 'cuda-bindings==12.*' (13 from JetPack 7 on)"
        )
    return f"Install it with: {pip_install(spec.extra)}"


# A whole ONNX model in 61 bytes, so that trying an engine needs neither a file nor the onnx package:
# y = x + x, float32 [3], opset 17.
PROBE_GRAPH: Final = (
    b"\x08\x08"  # ir_version 8
    b"\x42\x02\x10\x11"  # opset_import: version 17
    b"\x3a\x35"  # graph
    b"\x0a\x0e\x0a\x01x\x0a\x01x\x12\x01y\x22\x03Add"  # node: Add(x, x) -> y
    b"\x12\x01g"  # name
    b"\x5a\x0f\x0a\x01x\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x03"  # input x: float32 [3]
    b"\x62\x0f\x0a\x01y\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x03"  # output y: float32 [3]
)
