"""What an engine is, which ones there are, and opening one.

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
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, EngineNotBuiltError, EngineUnavailableError
from flowedge.manifest import Manifest, level_outputs
from flowedge.runtime.machine import find_jetson

if TYPE_CHECKING:
    from flowedge.runtime.building import Building, Built


class Engine(Protocol):
    """A graph, loaded on a device. Only computes: whoever calls it has checked the image.

    Attributes:
        name: Its name in ``ENGINES``.
        reason: Why this one computes: it was named, or what stood in the way of those before it.
        precision: Which of the bundle's graphs it has loaded.
        output_names: The names of the graph's outputs, in the graph's order.
    """

    name: str
    reason: str
    precision: str
    output_names: tuple[str, ...]

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


AUTO: Final = "auto"
"""In place of a precision: the fastest graph that is right here, see `flowedge.runtime.auto`."""


def open_engine(name: str | None, bundle: Bundle, precision: str, *, threads: int | None = None) -> Engine:
    """Load one graph of a bundle.

    Args:
        name: A name of ``ENGINES``; None takes the first, by ``order``, that opens here. The engine's ``reason``
            says what stood in the way of those before it.
        bundle: A verified bundle.
        precision: Which of its graphs; ``int8`` is the one for the engine's device.
        threads: How many CPU threads one inference uses; None leaves it to the engine.

    Raises:
        TypeError: ``threads`` is not a whole number.
        ValueError: ``threads`` is below 1.
        EngineUnavailableError: The engine is unknown, not installed, not importable, or cannot run the graph.
        BundleError: There is no graph of this precision, or it is not what the manifest says.
    """
    if threads is not None and not isinstance(threads, Integral):
        raise TypeError(f"threads must be a whole number or None, got {threads!r}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")

    def opened(spec: EngineSpec, exact: str) -> Engine:
        engine = engine_module(spec).load(Opening(spec=spec, bundle=bundle, precision=exact, threads=threads))
        engine.precision = exact
        return engine

    if name is not None:
        spec = engine_spec(name)
        exact = bundle.manifest.precision_on(spec.device, precision)
        bundle.manifest.graph(exact)
        engine = opened(spec, exact)
        engine.reason = "named"
        return engine
    problems: dict[str, EngineUnavailableError] = {}
    have = {graph.precision for graph in bundle.manifest.graphs}
    if not any(bundle.manifest.precision_on(spec.device, precision) in have for spec in ENGINES.values()):
        bundle.manifest.graph(precision)  # says what there is
    for spec in _in_order():
        if spec.order is None:
            continue
        exact = bundle.manifest.precision_on(spec.device, precision)
        if exact not in have:
            problems[spec.name] = EngineUnavailableError(
                f"{spec.name} needs the {exact} graph, which the bundle does not have."
            )
            continue
        try:
            engine = opened(spec, exact)
        except EngineUnavailableError as error:
            problems[spec.name] = error
        else:
            engine.reason = _reason(problems)
            return engine
    raise EngineUnavailableError(" ".join(str(problem) for problem in problems.values()))


def _reason(problems: Mapping[str, EngineUnavailableError]) -> str:
    """Why an engine was chosen that nobody named; what only had to be built is said in full."""
    if not problems:
        return "the first choice"
    not_built = [str(problem) for problem in problems.values() if isinstance(problem, EngineNotBuiltError)]
    passed_over = (
        f"the first that opens here; {', '.join(problems)} did not (name one as the engine to see why)"
    )
    return ". ".join([passed_over, *not_built])


def library_version(spec: EngineSpec) -> str:
    """Of an engine's library, which must be importable."""
    return str(getattr(importlib.import_module(spec.needs), "__version__", "unknown"))


def choosable_engines() -> tuple[EngineSpec, ...]:
    """Those that may be chosen without being named and that can be imported here, in the order of choice."""
    found = []
    for spec in _in_order():
        with contextlib.suppress(EngineUnavailableError):
            if spec.order is not None and engine_module(spec):
                found.append(spec)
    return tuple(found)


def _in_order() -> list[EngineSpec]:
    """All engines: those that are chosen by themselves by their order, then those that must be named."""
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
    return tuple(_status(spec) for spec in _in_order())


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
    """The facts of an engine.

    Raises:
        EngineUnavailableError: There is none of this name.
    """
    spec = ENGINES.get(name)
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
            f"Reinstall it with: pip install --force-reinstall 'flowedge[{spec.extra}]'"
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
    return f"Install it with: pip install 'flowedge[{spec.extra}]'"


# The graph's contract


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The type of one input or output; a dimension that the graph leaves open is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('N' if size is None else str(size) for size in self.shape)}]"


def input_of_graph(manifest: Manifest) -> tuple[str, TensorSpec]:
    """The name and the type of the one input of a bundle's graphs."""
    if manifest.frame_size is not None:
        return "frame", TensorSpec("uint8", (None, *manifest.frame_size, 3))
    return "image", TensorSpec("float32", (None, 3, *manifest.image_size))


def check_contract(
    graph: Path, manifest: Manifest, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    """Check that a graph takes and gives what the manifest says. Outputs may leave any dimension open.

    Raises:
        BundleError: An input or output is missing, is one too many, or has another type or shape.
    """
    height, width = manifest.image_size
    taken = dict([input_of_graph(manifest)])
    wanted = {
        "score": TensorSpec("float32", (None,)),
        "anomaly_map": TensorSpec("float32", (None, 1, height, width)),
    }
    for name, level in level_outputs(manifest.levels, manifest.nfa).items():
        wanted[name] = TensorSpec("float32", (None, 1, level.height, level.width))
    if manifest.family == "msflow":
        wanted["anomaly_map_mul"] = wanted["anomaly_map"]
    fits = (
        dict(inputs) == taken
        and outputs.keys() == wanted.keys()
        and all(_fits(outputs[name], spec) for name, spec in wanted.items())
    )
    if not fits:
        raise BundleError(
            f"{graph} is not the graph that its manifest describes: it should take {_listing(taken)} and give "
            f"{_listing(wanted)}; it takes {_listing(inputs)} and gives {_listing(outputs)}. "
            "Export the bundle again."
        )


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    return (
        found.dtype == wanted.dtype
        and len(found.shape) == len(wanted.shape)
        and all(
            one is None or other is None or one == other
            for one, other in zip(found.shape, wanted.shape, strict=True)
        )
    )


def _listing(specs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items()) or "nothing"


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
