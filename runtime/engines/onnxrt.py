"""Run a graph on ONNX Runtime: on the CPU, on CUDA, or through TensorRT."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.errors import BundleError, EngineNotBuiltError, EngineUnavailableError
from flowedge.manifest import FLOAT32_PRECISIONS, Preprocessing
from flowedge.packages import missing_wheel, pip_install
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import IGNORED_FACTS
from flowedge.runtime.device.machine import without_driver
from flowedge.runtime.engines.onnxrt_session import CPU, errors_in_words, open_session, run_session, specs_of
from flowedge.runtime.engines.onnxrt_tensorrt import (
    TENSORRT,
    Providers,
    engines_of,
    facts_of,
    has_engines,
    with_engines,
)
from flowedge.runtime.opening.building import built_in_cache
from flowedge.runtime.opening.contract import check_contract
from flowedge.runtime.opening.engine_contract import DEFAULT_BATCHES, Building, Built, EngineSpec, Opening
from flowedge.runtime.protocols import Engine

if TYPE_CHECKING:
    from flowedge.runtime.engines.onnxrt_bound import BoundRuns

_LOG: Final = logging.getLogger(__name__)

_CUDA: Final = "CUDAExecutionProvider"
_PROVIDER: Final = {
    "onnxruntime-cpu": CPU,
    **dict.fromkeys(("onnxruntime-cuda", "onnxruntime-cuda-nhwc", "onnxruntime-cuda-tf32"), _CUDA),
    "onnxruntime-tensorrt": TENSORRT,
}
_MEMORY: Final = "cuda"  # ONNX Runtime's name of the memory of an NVIDIA GPU


def load(opening: Opening) -> Engine:
    """Load a graph, with its external data from the graph's folder.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineNotBuiltError: TensorRT's engine for it is not in the cache.
        EngineUnavailableError: This ONNX Runtime has no such provider, cannot load it, or cannot run the graph.
    """
    name, largest = opening.spec.name, None
    providers = _providers(opening.spec)
    if opening.spec.listed == "onnxruntime-tensorrt":
        cache = device_cache()
        found = cache.find(facts_of(opening, DEFAULT_BATCHES), ignoring=IGNORED_FACTS)
        if found.plan is None or not has_engines(cache, found.facts):
            raise EngineNotBuiltError(
                f"{name} needs an engine compiled for this machine: {found.reason or 'its files were deleted'}. "
                f"Build it with: flowedge build {opening.source.owner} --engine {name} --precision {opening.precision}"
            )
        cache.touch(engines_of(cache, found.facts))
        largest = found.facts.batches[2]
        providers = with_engines(providers, opening, cache, found.facts)
    runs = _bound_runs(opening, providers) if _PROVIDER[opening.spec.listed] == _CUDA else None
    return _OnnxRuntime(
        name, runs or _PlainRuns(_checked_session(opening, providers)), tuple(opening.source.inputs), largest
    )


def build(building: Building) -> Built:
    """Let ONNX Runtime build its TensorRT engines, in a folder of the device cache that the engines' facts name.

    Only float32 is built. ONNX Runtime builds weakly typed networks, in which TensorRT may compute float32 parts in a
    lower precision.

    Raises:
        BundleError: The graph is damaged or is not what the manifest says.
        EngineUnavailableError: ONNX Runtime has no TensorRT, cannot load it, or cannot build the graph.
        EngineCacheError: The cache cannot be written.
    """
    opening, options = building.opening, building.options
    name = opening.spec.name
    if opening.precision not in FLOAT32_PRECISIONS or options.dla or options.capabilities:
        raise EngineUnavailableError(
            f"{name} is built for the precision fp32, for the GPU of this machine, without --dla. "
            "For other precisions take --engine tensorrt, or run onnxruntime-cuda, which needs no build."
        )
    providers = _providers(opening.spec)
    facts = facts_of(opening, options.batches)
    known = building.cache.find(facts)
    if known.plan is not None and not has_engines(building.cache, facts):
        building.cache.drop(known.path)

    def compile_it() -> bytes:
        building.reports.step("ONNX Runtime builds its engines")
        # ONNX Runtime would load engines that lie in the folder, instead of building them.
        shutil.rmtree(engines_of(building.cache, facts), ignore_errors=True)
        _checked_session(opening, with_engines(providers, opening, building.cache, facts))
        files = sorted(file.name for file in engines_of(building.cache, facts).glob("*.engine"))
        if not files:
            raise EngineUnavailableError(
                f"{name} took the graph and built no engine from it: TensorRT supports none of it. "
                "Take onnxruntime-cuda."
            )
        return "\n".join(files).encode()

    return built_in_cache(building, facts, compile_it, notes=[])


def probe(spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try ONNX Runtime by running a graph with one input and one output of one shape.

    Raises:
        EngineUnavailableError: This ONNX Runtime has no such provider, cannot load it, or cannot run the graph.
    """
    return repeatable(spec, graph, x)()


def repeatable(
    spec: EngineSpec, graph: bytes, x: NDArray[np.float32], *, threads: int | None = 1
) -> Callable[[], NDArray[np.float32]]:
    """Open a graph with one input and one output, with the provider and the options of an engine.

    Args:
        spec: The engine.
        graph: The ONNX graph with its weights, below 2 GiB.
        x: The input.
        threads: The number of CPU threads of one inference. Without a number ONNX Runtime decides.

    Returns:
        A function that runs the graph on the input and waits for the answer.

    Raises:
        EngineUnavailableError: This ONNX Runtime has no such provider, cannot load it, or cannot read the graph.
    """
    try:
        session = open_session(graph, _providers(spec), threads=threads, where="the probe graph")
    except BundleError as error:
        raise EngineUnavailableError(str(error)) from error
    feed = {session.get_inputs()[0].name: x}
    return lambda: run_session(session, None, feed)[0]


def open_part(model: bytes, where: str) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Open a part of a graph on the CPU with the options of ``onnxruntime-cpu``, on the calling thread alone.

    Args:
        model: The part as an ONNX graph with its weights, below 2 GiB.
        where: A few words for messages, which name the part.

    Returns:
        A function from the inputs to the outputs, by name. Threads may share it.

    Raises:
        BundleError: ONNX Runtime cannot read the part.
        EngineUnavailableError: ONNX Runtime cannot run the part.
    """
    session = open_session(model, [(CPU, {})], threads=1, where=where, arena=False)
    names = tuple(output.name for output in session.get_outputs())
    return lambda feed: dict(zip(names, run_session(session, names, dict(feed)), strict=True))


def check_device(spec: EngineSpec) -> None:
    """Check that the provider of an engine and its GPU are here.

    Raises:
        EngineUnavailableError: This ONNX Runtime has no such provider, or there is no such GPU or no driver for it.
    """
    _providers(spec)
    with contextlib.suppress(ModuleNotFoundError):  # without CUDA's binding the session tells it later
        from flowedge.runtime.engines import cuda

        if not cuda.binding_problem():
            cuda.device(spec.index)


def _providers(spec: EngineSpec) -> Providers:
    """Return the provider of an engine, and the providers that run the few nodes that it leaves.

    Raises:
        EngineUnavailableError: This build of ONNX Runtime has no such provider, or the process lets TensorRT compute
            float32 in lower precision.
    """
    wanted = _PROVIDER[spec.listed]
    if wanted not in ort.get_available_providers():
        lacking = missing_wheel("ort-gpu")
        how = f"takes the same folder: pip uninstall onnxruntime, then {pip_install('ort-gpu')}"
        raise EngineUnavailableError(
            f"ONNX Runtime {ort.__version__} is installed without {wanted}. Its GPU build has it, "
            + (f"but {lacking}. Take tensorrt." if lacking else f"and {how}.")
            + without_driver()
        )
    if wanted == CPU:
        return [(CPU, {})]
    if wanted == TENSORRT and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        # The provider has no option for it, and a library may not change the environment of its process.
        raise EngineUnavailableError(
            f"{spec.name} would compute float32 as TensorFloat-32, with 10 bits in place of 23. Start the process with "
            "NVIDIA_TF32_OVERRIDE=0 in its environment, or take onnxruntime-cuda."
        )
    _preload_cuda()
    device = {"device_id": str(spec.index)}
    on_the_gpu: Providers = [(_CUDA, _CUDA_OPTIONS | dict(spec.options) | device), (CPU, {})]
    return on_the_gpu if wanted == _CUDA else [(TENSORRT, device), *on_the_gpu]


# 1. TensorFloat-32 would lose 13 of the 23 bits of float32, and an fp32 graph is compared with limits of float32. Only
#    the engine that is named for it switches it on.
# 2. An exhaustive search times every algorithm of cuDNN once for each shape of input. A line has few shapes, and
#    `Detector.warm_up` runs them before the first part comes.
# 3. The arena grows by what is asked for instead of doubling, since a Jetson shares its memory with the CPU.
_CUDA_OPTIONS: Final = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",
}


@functools.cache
def _preload_cuda() -> None:
    """Load CUDA and cuDNN from pip's folders, once in a process.

    ONNX Runtime prints the libraries that it does not find. A copy of its function writes them to the log instead, so
    that no other thread's standard output is redirected.
    """
    preload = getattr(ort, "preload_dlls", None)
    if isinstance(preload, FunctionType):
        named = {"print": lambda *words, **options: _LOG.info("ONNX Runtime: %s", " ".join(map(str, words)))}
        copied = FunctionType(
            preload.__code__, preload.__globals__ | named, preload.__name__, preload.__defaults__
        )
        copied.__kwdefaults__ = preload.__kwdefaults__
        copied()


def _checked_session(opening: Opening, providers: Providers) -> ort.InferenceSession:
    graph = opening.graph
    session = open_session(
        str(graph), providers, threads=opening.threads, takes_turns=opening.takes_turns, where=str(graph)
    )
    try:
        inputs, outputs = specs_of(session.get_inputs()), specs_of(session.get_outputs())  # pyright: ignore[reportArgumentType]
    except UnicodeDecodeError as error:
        raise BundleError(
            f"the names of the inputs and outputs of {graph} are no text: {error}. Export the bundle again."
        ) from error
    check_contract(opening.source, inputs, outputs)
    return session


def _bound_runs(opening: Opening, providers: Providers) -> BoundRuns | None:
    """Open a session whose buffers stay on the GPU, or return None where CUDA's Python binding cannot be used."""
    try:
        from flowedge.runtime.engines import cuda
        from flowedge.runtime.engines.onnxrt_bound import BoundRuns
    except ModuleNotFoundError as error:
        _warn_of_plain_runs(
            opening.spec,
            f"the package {error.name} is not installed. Install it with: {pip_install(opening.spec.extra)}",
        )
        return None
    if problem := cuda.binding_problem():
        _warn_of_plain_runs(opening.spec, problem)
        return None
    specs = (*opening.source.inputs.values(), *opening.source.outputs.values())
    if any(None in spec.shape[1:] for spec in specs):
        return None  # buffers need a size, which only the number of images leaves open
    cuda.device(opening.spec.index)  # which explains a missing driver or GPU

    (name, options), *others = providers

    def with_graphs(has_graphs: bool) -> Providers:
        return [(name, options | {"enable_cuda_graph": str(int(has_graphs))}), *others]

    def open_front(graph: bytes, has_graphs: bool) -> ort.InferenceSession:
        # The resize needs every bit of float32, also where the network may do without.
        exact = [
            (one, chosen | {"use_tf32": "0"} if one == _CUDA else chosen)
            for one, chosen in with_graphs(has_graphs)
        ]
        return open_session(graph, exact, threads=1, where="the graph of the preprocessing")

    return BoundRuns(
        lambda has_graphs: _checked_session(opening, with_graphs(has_graphs)),
        open_front,
        opening.source,
        name=opening.spec.name,
        device=opening.spec.index,
        memory=_MEMORY,
    )


def _warn_of_plain_runs(spec: EngineSpec, reason: str) -> None:
    _LOG.warning(
        "%s copies through ONNX Runtime and runs without CUDA graphs, which costs time, because %s",
        spec.name,
        reason,
    )


class _Runs(Protocol):
    """The runs of a session, which threads may share."""

    output_names: tuple[str, ...]

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]: ...

    def take_frames(self, preprocessing: Preprocessing) -> Callable[[tuple[int, int]], bool] | None: ...

    def close(self) -> None: ...


class _PlainRuns:
    """Runs of a session that takes its inputs from the host's memory and allocates its outputs."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self.output_names = tuple(output.name for output in session.get_outputs())

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        session = self._session  # another thread may close the engine while this one runs
        if session is None:
            raise ValueError("the engine is closed")
        return dict(zip(names, run_session(session, tuple(names), feed), strict=True))

    def take_frames(self, preprocessing: Preprocessing) -> None:
        return None

    def close(self) -> None:
        self._session = None


class _OnnxRuntime:
    def __init__(self, name: str, runs: _Runs, inputs: tuple[str, ...], largest: int | None) -> None:
        self.name = name
        self.output_names = runs.output_names
        self.in_flight = getattr(runs, "in_flight", 1)
        self._inputs, self._runs = inputs, runs
        # Above its largest batch, TensorRT would build another engine in the middle of a run.
        self.batches: tuple[int, int] | None = None if largest is None else (1, largest)

    def infer(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        return self.infer_only(self.output_names, *inputs)

    def infer_only(self, outputs: Sequence[str], *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        images = len(inputs[0])
        if self.batches is not None and images > self.batches[1]:
            raise EngineUnavailableError(
                f"the engine was built for at most {self.batches[1]} images at a time, got {images}. "
                f"Build one for more with: flowedge build BUNDLE --engine {self.name} --batch 1,1,{images}"
            )
        with errors_in_words(inputs):
            return self._runs.run(outputs, dict(zip(self._inputs, inputs, strict=True)))

    def take_frames(self, preprocessing: Preprocessing) -> Callable[[tuple[int, int]], bool] | None:
        return self._runs.take_frames(preprocessing)

    def close(self) -> None:
        self._runs.close()
