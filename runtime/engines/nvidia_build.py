"""Build an engine of TensorRT or of TensorRT for RTX from a bundle's graph, and store it in the device cache.

The network is strongly typed, so that it computes in the types of the graph. TensorFloat-32, which both libraries use
in place of float32 by default, is switched off. TensorRT 8 has no strongly typed networks, so only float32 is built
with it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError
from flowedge.files import utf8_name
from flowedge.manifest import FLOAT32_PRECISIONS
from flowedge.progress import Reports
from flowedge.runtime.engines import cuda
from flowedge.runtime.engines.nvidia import (
    RTX,
    Native,
    capabilities_of,
    check_supported,
    deserialized,
    facts_of,
    log_of,
    tensor_spec,
    validity_problem,
)
from flowedge.runtime.opening.building import built_in_cache
from flowedge.runtime.opening.engine_contract import Building, Built, EngineSpec


def build(trt: Any, building: Building) -> Built:
    """Build the graph's engine. TensorRT builds for this device, TensorRT for RTX for every device that it fits.

    TensorRT for RTX also builds on a machine without a GPU. Where there is a GPU and nobody names capabilities, the
    engine must fit this GPU.

    Raises:
        EngineUnavailableError: The library, the device or its accelerator cannot build the graph. The message holds
            the parser's messages.
        EngineCacheError: The cache cannot be written.
    """
    opening, options = building.opening, building.options
    name, precision = opening.spec.name, opening.precision
    is_rtx = opening.spec.listed == RTX
    if options.capabilities and not is_rtx:
        raise EngineUnavailableError(
            f"compute capabilities are chosen for {RTX} only: {name} builds for the GPU of this machine."
        )
    if precision not in FLOAT32_PRECISIONS and not _strongly_typed(trt):
        raise EngineUnavailableError(
            f"TensorRT {trt.__version__} has no strongly typed networks: it would choose where to compute in half "
            f"precision by itself. Take --precision fp32, or --engine onnxruntime-cuda for {precision}."
        )
    device = None if is_rtx else cuda.device(opening.spec.index)
    # The GPU that TensorRT for RTX builds for, unless there is none here or somebody builds for others.
    here = _device_here(opening.spec.index) if is_rtx and not options.capabilities else None
    if here is not None:
        check_supported(trt, here)
    facts = facts_of(
        trt,
        opening,
        device,
        batches=options.batches,
        capability=",".join(options.capabilities),
        options=("dla",) if options.dla else (),
    )
    notes: list[str] = []

    def compile_it() -> bytes:
        builder, network = parsed(trt, opening.graph, name)
        config = builder.create_builder_config()
        set_batches(builder, network, config, options.batches)
        if options.capabilities:
            _set_capabilities(trt, config, options.capabilities)
        if options.dla:
            notes.extend(use_dla(trt, builder, network, config, building))
        timing = ""
        if device is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, device.free // 2)
            timing = f"timing/{trt.__version__}-{device.name.replace('/', ' ')}-{device.capability}.cache"
            times = config.create_timing_cache(building.cache.read_extra(timing))  # empty where it is damaged
            if not config.set_timing_cache(times, ignore_mismatch=False):
                notes.append("the stored timings are of another machine, so every kernel is timed again")
        plan = serialized(trt, builder, network, config, building.reports)
        if here is not None and (problem := validity_problem(trt, plan, here)).reason:
            raise EngineUnavailableError(f"{name} built an engine that this GPU cannot use: {problem.reason}")
        if timing:
            building.cache.write_extra(timing, bytes(config.get_timing_cache().serialize()))
        return plan

    return built_in_cache(building, facts, compile_it, notes)


def parsed(trt: Any, graph: Path | bytes, name: str) -> tuple[Any, Any]:
    """Parse a graph, and return the builder and the network.

    Raises:
        EngineUnavailableError: The builder cannot start, or the parser refuses the graph. The message holds the
            parser's messages.
    """
    log = log_of(trt)
    log.lines.clear()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the library made no builder
        raise EngineUnavailableError(
            f"{name} {trt.__version__} cannot start: {'; '.join(log.lines) or error}. Check the GPU and its driver."
        ) from error
    flag = "STRONGLY_TYPED" if _strongly_typed(trt) else "EXPLICIT_BATCH"
    network = builder.create_network(1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag)))
    parser = trt.OnnxParser(network, log)
    if isinstance(graph, bytes):
        accepted = parser.parse(graph)
    else:
        with utf8_name(graph) as readable:
            accepted = parser.parse_from_file(readable)
    if not accepted:
        errors = [str(parser.get_error(number)) for number in range(parser.num_errors)]
        where = "the probe graph" if isinstance(graph, bytes) else str(graph)
        raise EngineUnavailableError(
            f"{name} {trt.__version__} cannot parse {where}: " + "; ".join([*errors, *log.lines])
        )
    return builder, network


def serialized(
    trt: Any,
    builder: Any,
    network: Any,
    config: Any,
    reports: Reports | None = None,
) -> bytes:
    """Build an engine without TensorFloat-32. With ``reports``, the library reports its progress.

    Raises:
        EngineUnavailableError: The builder failed. The message holds its messages.
        KeyboardInterrupt: The user interrupted the build, which has ended.
    """
    log = log_of(trt)
    log.lines.clear()
    config.clear_flag(trt.BuilderFlag.TF32)
    monitor = None
    if reports is not None and hasattr(trt, "IProgressMonitor"):  # since 8.6
        monitor = _monitor(trt, reports)
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineUnavailableError(
            f"{trt.__name__} {trt.__version__} cannot build the engine: " + "; ".join(log.lines)
        )
    return bytes(plan)


def probe(trt: Any, spec: EngineSpec, graph: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Try the library by building and running a graph with one input and one output of one fixed shape.

    Raises:
        EngineUnavailableError: There is no GPU, or the library cannot build or run it.
    """
    device = cuda.device(spec.index)
    if spec.listed == RTX:
        check_supported(trt, device)
    builder, network = parsed(trt, graph, spec.name)
    plan = serialized(trt, builder, network, builder.create_builder_config())
    engine, complaints = deserialized(trt, plan)
    if engine is None:
        raise EngineUnavailableError(
            f"{spec.name} refuses its own engine: {complaints}. Reinstall {spec.needs}."
        )
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    taken, given = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
    native = Native(
        trt,
        engine,
        name=spec.name,
        inputs=(taken,),
        outputs={given: tensor_spec(engine, given)},
        kernels=None,
        graphs=False,
        device=device.index,
    )
    try:
        return native.infer(x)[given]
    finally:
        native.close()


def _strongly_typed(trt: Any) -> bool:
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def set_batches(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Let the batch of every input have any size between two sizes.

    Raises:
        EngineUnavailableError: The library refuses the sizes.
    """
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        taken = network.get_input(number)
        rest = tuple(taken.shape)[1:]
        profile.set_shape(taken.name, *((batch, *rest) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise EngineUnavailableError(
            f"TensorRT refuses a batch of {batches[0]} to {batches[2]} images. Choose other sizes with --batch."
        )


def _set_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    supported = capabilities_of(trt)
    config.num_compute_capabilities = len(capabilities)
    for number, capability in enumerate(capabilities):
        member = supported.get(capability)
        if member is None or not config.set_compute_capability(member, number):
            raise EngineUnavailableError(
                f"{RTX} {trt.__version__} does not build for the compute capability {capability!r}. "
                f"Choose of: {', '.join(supported)}."
            )


def _device_here(index: int) -> cuda.Device | None:
    """Return the GPU of this machine, or None where CUDA shows none."""
    try:
        return cuda.device(index)
    except EngineUnavailableError:
        return None


def use_dla(trt: Any, builder: Any, network: Any, config: Any, building: Building) -> list[str]:
    """Put the layers of the backbone on the deep-learning accelerator, and return a note on those that it refused.

    Raises:
        EngineUnavailableError: There is no accelerator, or it cannot take this precision or an open batch.
    """
    if not builder.num_DLA_cores:
        raise EngineUnavailableError(
            "this machine has no deep learning accelerator that TensorRT can use (Jetson Orin and Xavier have one). "
            "Build without --dla."
        )
    smallest, _, largest = building.options.batches
    if building.opening.precision in FLOAT32_PRECISIONS or smallest != largest:
        raise EngineUnavailableError(
            "the deep learning accelerator computes in float16 or int8, in one batch size: "
            f"got {building.opening.precision} and {smallest} to {largest} images. "
            "Take --precision fp16 and, for instance, --batch 1,1,1."
        )
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    config.DLA_core = 0
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    backbone = [layer for layer in layers if layer.name.startswith("backbone/")]
    fallen: Counter[str] = Counter()
    for layer in backbone:
        if config.can_run_on_DLA(layer):
            config.set_device_type(layer, trt.DeviceType.DLA)
        else:
            fallen[layer.type.name] += 1
    placed = len(backbone) - fallen.total()
    note = f"{placed} of the backbone's {len(backbone)} layers run on the accelerator"
    if fallen:
        note += "; on the GPU: " + ", ".join(f"{count} {kind}" for kind, count in fallen.most_common())
    return [note]


def _monitor(trt: Any, reports: Reports) -> Any:
    """Make a monitor that reports TensorRT's progress: the name of the innermost phase, the steps of the outermost."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._phases: dict[str, int] = {}
            self._done = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = num_steps
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == next(iter(self._phases), None):
                self._done = step + 1
            self._tell(phase_name)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == next(iter(self._phases), None):
                self._done = self._phases[phase_name]
                self._tell(phase_name)
            self._phases.pop(phase_name, None)

        def _tell(self, phase_name: str) -> None:
            try:
                reports.step(phase_name, next(iter(self._phases.values()), 1))
                reports.advance(self._done)
            except KeyboardInterrupt:
                # No exception may pass through the library. So step_complete ends the build.
                self.interrupted = True

    return Monitor()
