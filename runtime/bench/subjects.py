"""The subjects of a measurement: a bundle on an engine, a foreign ONNX file, PyTorch, or the machine."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import FlowEdgeError
from flowedge.runtime.bench.protocol import (
    Command,
    Job,
    Macs,
    Peak,
    PeakMemory,
    Shared,
    StagesAnswer,
    StageTimes,
    Started,
    Window,
)
from flowedge.runtime.opening.timing import window_of

_BASELINE: Final = "flowedge.export.baseline"  # imports torch, and only in the process that measures it
_PEAK_SIDE: Final = 1024
_COPY_BYTES: Final = 64_000_000


class Subject(Protocol):
    """A measured thing that answers commands. ``started`` is its first answer."""

    started: Started

    def answer(self, command: Command) -> msgspec.Struct:
        """Do what the command says."""
        ...


class Inference(Protocol):
    """An inference to time. Making one loads the graph."""

    started: Started

    def work(self, batch: int) -> Callable[[], object]:
        """Prepare the input of ``batch`` images, and return a function that runs one inference on it."""
        ...


def subject_of(job: Job) -> Subject:
    """Load what the job names, and run it once.

    Raises:
        FlowEdgeError: The subject cannot be loaded or run on this machine.
    """
    if job.kind == "machine":
        return _MachineSpeed()
    if job.kind == "torch":
        return _Timed(importlib.import_module(_BASELINE).TorchBaseline(job))
    if job.kind == "peer":
        from flowedge.runtime.bench.peers import peer_of

        return _Timed(peer_of(job))
    return _Bundle(job)


class _Timed:
    """Measures windows and memory of an inference."""

    def __init__(self, inference: Inference) -> None:
        self.started = inference.started
        self._inference = inference
        self._batch = 0
        self._work: Callable[[], object] = _nothing

    def answer(self, command: Command) -> msgspec.Struct:
        if command.do == "window":
            if command.batch != self._batch:
                self._work = _nothing  # frees the last batch's input before the next is made
                self._batch, self._work = command.batch, self._inference.work(command.batch)
            return Window(ms=window_of(self._work, command.seconds))
        if command.do == "memory":
            return PeakMemory(peak_mb=peak_resident_mb())
        raise FlowEdgeError(f"{self.started.engine} has no {command.do} to measure.")


class _Bundle(_Timed):
    """One graph of a bundle on one engine."""

    def __init__(self, job: Job) -> None:
        frame: NDArray[np.uint8] = np.load(job.frame, allow_pickle=False)
        # The imports are inside, because the time of loading an engine holds the import of its library.
        start = time.perf_counter()
        from flowedge.bundle import open_bundle
        from flowedge.runtime.detector import Detector
        from flowedge.runtime.opening.engine import AUTO

        bundle = open_bundle(job.path)
        if job.precision == AUTO:
            from flowedge.runtime.opening.opening import open_or_build

            session = open_or_build(job.engine, bundle, AUTO, threads=job.threads)
        else:
            # The engine is not proven. The report tells whether its answers are right.
            from flowedge.runtime.opening.unproven import open_unproven

            session = open_unproven(job.engine, bundle, job.precision, threads=job.threads)
        self._detector = Detector(bundle, session)
        loaded = time.perf_counter()
        self._detector(frame)
        verdict = time.perf_counter()
        from flowedge.runtime.frames.graph_input import GraphInput
        from flowedge.runtime.opening.engine import engine_spec, library_version

        spec = engine_spec(job.engine)
        self.started = Started(
            engine=spec.name,
            version=library_version(spec),
            device=spec.device,
            load_ms=1000 * (loaded - start),
            first_ms=1000 * (verdict - loaded),
            graph=str(self._detector.bundle.graph_path(self._detector.precision)),
            # The operations are counted in the fp32 graph, which has no nodes that convert between types.
            counted=str(self._detector.bundle.graph_path("fp32")),
            precision=self._detector.precision,
        )
        self._frame, self._picture = frame, Path(job.picture)
        self._input = GraphInput(self._detector.bundle.manifest)
        super().__init__(self)

    def work(self, batch: int) -> Callable[[], object]:
        # The input is made once, because a window times the engine's call alone.
        image = self._input([self._frame] * batch)
        return lambda: self._detector.engine.infer(image)

    def answer(self, command: Command) -> msgspec.Struct:
        if command.do == "stages":
            return self._stages(command.seconds)
        if command.do == "shared":
            return shared_speed(self._detector, self._frame, command.threads, command.seconds)
        if command.do == "parity":
            from flowedge.runtime.bench.parity import parity_of

            return parity_of(self._detector.bundle, self._detector.engine)
        if command.do == "peak":
            from flowedge.runtime.bench.device_peak import device_peak

            engine = self._detector.engine
            return device_peak(engine.spec, engine.precision, command.seconds, threads=engine.threads)
        return super().answer(command)

    def _stages(self, seconds: float) -> StagesAnswer:
        from flowedge.runtime.frames.images import read_image

        frames: list[StageTimes] = []

        def inspect_picture() -> None:
            start = time.perf_counter()
            frame = read_image(self._picture)
            decoded = time.perf_counter()
            timings = self._detector(frame).timings
            done = time.perf_counter()
            frames.append(
                StageTimes(
                    decode=1000 * (decoded - start),
                    preprocess=timings.preprocess_ms,
                    infer=timings.infer_ms,
                    decide=timings.decide_ms,
                    overhead=1000 * (done - decoded) - timings.infer_ms,
                )
            )

        window_of(inspect_picture, seconds)
        return StagesAnswer(frames=tuple(frames))


def shared_speed(
    inspect: Callable[[NDArray[np.uint8]], object], frame: NDArray[np.uint8], threads: int, seconds: float
) -> Shared:
    """Let threads share a detector for a while, and count the frames of all of them.

    Args:
        inspect: The detector.
        frame: The frame that every thread inspects again and again, at least once.
        threads: The number of threads.
        seconds: The time after which no thread begins another frame.
    """

    def keep_inspecting() -> int:
        count = 0
        # Each thread inspects at least one frame, so that a slow detector has a speed too.
        while count == 0 or time.perf_counter() < end:
            inspect(frame)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        end = start + seconds
        running = [pool.submit(keep_inspecting) for _ in range(threads)]
        frames = sum(one.result() for one in running)
        return Shared(threads=threads, frames_per_s=frames / (time.perf_counter() - start))


class _MachineSpeed:
    """Measures the machine's peak speeds, and counts an ONNX file's multiply-accumulates."""

    def __init__(self) -> None:
        self.started = Started(
            engine="numpy", version=np.__version__, device="cpu", load_ms=0.0, first_ms=0.0
        )
        self._a, self._b = np.random.default_rng(0).random((2, _PEAK_SIDE, _PEAK_SIDE), np.float32)
        self._product = np.empty_like(self._a)
        self._from = np.ones(_COPY_BYTES // 8)
        self._to = np.empty_like(self._from)

    def answer(self, command: Command) -> msgspec.Struct:
        if command.do == "macs":
            from flowedge.runtime.bench.macs import multiply_accumulates

            return Macs(macs=multiply_accumulates(Path(command.graph)))
        if command.do != "peak":
            raise FlowEdgeError(f"the machine has no {command.do} to measure.")
        # Other work only slows a run down, so the fastest run is nearest to the machine's peak.
        product = window_of(lambda: np.matmul(self._a, self._b, out=self._product), command.seconds / 2)
        copy = window_of(lambda: np.copyto(self._to, self._from), command.seconds / 2)
        return Peak(gflops=2e-6 * _PEAK_SIDE**3 / min(product), copy_gb_s=2e-6 * _COPY_BYTES / min(copy))


def peak_resident_mb() -> float | None:
    """Return the largest resident memory of this process so far in 10^6 bytes, or None where it is not counted.

    Linux counts it and calls it VmHWM.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def _nothing() -> None:
    return None
