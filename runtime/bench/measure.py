"""The bench: start a process for each combination, let them take turns, and put together what they found.

A machine is never as quiet as one would like. All combinations are loaded first, and are then timed in turns, a short
window each, so that whatever else runs hurts all alike; so does the machine's own peak, which is taken in every turn.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import msgspec
import numpy as np

from flowedge.bundle import Bundle, open_bundle
from flowedge.clock import utc_now
from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.graph_files import bytes_of_graph
from flowedge.progress import SILENT, Reports
from flowedge.runtime.bench.machine import EnergyMeter, device_memory_mb, machine_facts
from flowedge.runtime.bench.process import Worker
from flowedge.runtime.bench.protocol import (
    Command,
    Job,
    Macs,
    Memory,
    Parity,
    Peak,
    Shared,
    StagesAnswer,
    StageTimes,
    Window,
)
from flowedge.runtime.bench.report import PERCENTILES, SCHEMA, BatchTiming, Machine, Report, Row, Stages
from flowedge.runtime.engine import ENGINES
from flowedge.runtime.selftest import synthetic_frames
from flowedge.text import printable
from flowedge.version import __version__

ROUNDS: Final = 6
"""Turns of each combination and batch."""

DEFAULT_FRAME: Final = (1024, 1024)
SHARED_BY: Final = (1, 2, 4)
"""The numbers of threads that share a bundle's detector."""

_WARM_WINDOWS: Final = 10  # at most, before the timing starts
_AGREE: Final = 0.05  # medians of successive windows, when warm
_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What a user may choose.

    Attributes:
        engines: Names of ``ENGINES``; None takes all.
        precisions: Of the bundles' graphs; None takes all that a bundle has.
        batches: Images of one inference; the first is also what shares and plots refer to.
        frame_size: ``(height, width)`` of the synthetic source frames; None takes a bundle's ``frame_size``, else
            1024x1024.
        peers: Foreign ONNX files.
        checkpoint: The first bundle's, to run in PyTorch beside it.
        backbone_weights: For the checkpoint.
        threads: CPU threads of each process; None leaves it to the engines.
        seconds: How long each combination is timed for each batch.
        command: The command line, for the record.
    """

    engines: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 4, 8)
    frame_size: tuple[int, int] | None = None
    peers: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    backbone_weights: Path | None = None
    threads: int | None = None
    seconds: float = 3.0
    command: str = ""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches must be different and at least 1, got {self.batches}")
        if self.seconds < 0:
            raise ValueError(f"seconds must not be negative, got {self.seconds}")


def run_bench(
    bundles: Sequence[Path],
    options: BenchOptions,
    *,
    reports: Reports = SILENT,
) -> Report:
    """Measure every combination; those that cannot run are rows with the reason.

    Args:
        bundles: Bundles; may be empty when there are peers.
        options: What the user chose.
        reports: Told of each step.

    Raises:
        BundleError: A bundle cannot be opened.
        EngineUnavailableError: An engine's name is unknown.
    """
    for name in options.engines or ():
        if name not in ENGINES:
            raise EngineUnavailableError(f"there is no engine {name!r}. Choose one of: {', '.join(ENGINES)}.")
    date = _now()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowedge-bench-")))
        runs = list(_runs(bundles, options, folder))
        machine_worker = stack.enter_context(Worker(Job(kind="machine", threads=options.threads)))
        for run in runs:
            reports.step(f"starting {run.label}")
            run.start(stack)
        machine = _measure(runs, options, machine_worker, reports)
        for run in runs:
            reports.step(f"checking {run.label}")
            run.finish(machine_worker)
        rows = tuple(run.row(machine, options) for run in runs)
    return Report(
        schema=SCHEMA,
        flowedge_version=__version__,
        date=date,
        command=options.command,
        machine=machine,
        seconds=options.seconds,
        rows=rows,
        wrong=tuple(row.label for row in rows if row.is_wrong),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """One combination while it is measured."""

    job: Job
    label: str
    frame_size: tuple[int, int]
    worker: Worker | None = None
    date: str = ""
    problem: str = ""
    windows: dict[int, list[float]] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    joules: dict[int, float] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    stages: list[StageTimes] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    parity: Parity | None = None
    parity_problem: str = ""
    peak_mb: float | None = None
    device_mb: float | None = None
    macs: int | None = None
    notes: list[str] = field(default_factory=list)

    def start(self, stack: contextlib.ExitStack) -> None:
        self.date = _now()
        try:
            self.worker = stack.enter_context(Worker(self.job))
        except EngineUnavailableError as error:
            self.problem = printable(str(error))

    def can(self, batch: int) -> bool:
        return self.worker is not None and batch not in self.problems

    def warm_up(self, batch: int, seconds: float) -> None:
        """Until the medians of successive windows agree, or for some windows."""
        last = 0.0
        for _ in range(_WARM_WINDOWS):
            window = self._window(batch, seconds)
            if window is None:
                return
            median = statistics.median(window)
            if abs(median - last) <= _AGREE * median:
                self.settled.add(batch)
                return
            last = median

    def turn(self, batch: int, seconds: float, meter: EnergyMeter) -> None:
        meter.start()
        window = self._window(batch, seconds)
        used = meter.stop()
        if window is not None:
            self.windows.setdefault(batch, []).extend(window)
            if used is not None:
                self.joules[batch] = self.joules.get(batch, 0.0) + used

    def turn_stages(self, seconds: float) -> None:
        if self.worker is None or self.job.kind != "bundle":
            return
        try:
            command = Command(do="stages", seconds=seconds)
            self.stages.extend(self.worker.ask(command, StagesAnswer).frames)
        except EngineUnavailableError as error:
            self.notes.append(printable(f"no stages: {error}"))

    def share(self, seconds: float) -> None:
        if self.worker is None or self.job.kind != "bundle":
            return
        for threads in SHARED_BY:
            try:
                command = Command(do="shared", threads=threads, seconds=seconds)
                self.shared.append(self.worker.ask(command, Shared))
            except EngineUnavailableError as error:
                self.notes.append(printable(f"no frames per second of {threads} threads: {error}"))

    def finish(self, machine: Worker) -> None:
        """What is asked once: memory before the self-test, which would add to it."""
        if self.worker is None:
            return
        try:
            self.peak_mb = self.worker.ask(Command(do="memory"), Memory).peak_mb
            self.device_mb = (
                None if self.worker.started.device == "cpu" else device_memory_mb(self.worker.pid)
            )
            if self.job.kind == "bundle":
                self.parity = self.worker.ask(Command(do="parity"), Parity)
        except EngineUnavailableError as error:
            self.parity_problem = printable(str(error))
        if self.worker.started.counted is not None:
            try:
                command = Command(do="macs", graph=self.worker.started.counted)
                self.macs = machine.ask(command, Macs).macs
            except EngineUnavailableError as error:
                self.notes.append(printable(f"no share of the peak: {error}"))

    def row(self, machine: Machine, options: BenchOptions) -> Row:
        if self.worker is None:
            return self._row(machine, options)
        timings = tuple(self._timing(batch) for batch in options.batches)
        started = self.worker.started
        measured = [timing for timing in timings if timing.p50_ms]
        on_cpu = started.device == "cpu"
        per_image = [timing.p50_ms / timing.batch for timing in measured if timing.p50_ms]
        peak_share = bandwidth_share = None
        if on_cpu and self.macs and per_image and machine.gflops:
            peak_share = 2e-6 * self.macs / min(per_image) / machine.gflops
        if on_cpu and started.graph is not None and measured and machine.copy_gb_s and measured[0].p50_ms:
            bandwidth_share = (
                1e-6 * bytes_of_graph(Path(started.graph)) / measured[0].p50_ms / machine.copy_gb_s
            )
        return msgspec.structs.replace(
            self._row(machine, options),
            engine=started.engine,
            version=started.version,
            device=started.device,
            precision=started.precision or self.job.precision,
            timings=timings,
            cold_start_ms=self.worker.cold_start_ms,
            load_ms=started.load_ms,
            first_ms=started.first_ms,
            peak_resident_mb=self.peak_mb,
            device_memory_mb=self.device_mb,
            stages=self._stages(),
            shared=tuple(self.shared),
            parity=self.parity,
            parity_problem=self.parity_problem,
            macs=self.macs,
            peak_share=peak_share,
            bandwidth_share=bandwidth_share,
        )

    def _row(self, machine: Machine, options: BenchOptions) -> Row:
        return Row(
            kind=self.job.kind,
            name=printable(self.job.path),
            engine=self.job.engine,
            precision=self.job.precision,
            threads=options.threads,
            date=self.date,
            command=options.command,
            machine=machine,
            problem=self.problem,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _window(self, batch: int, seconds: float) -> tuple[float, ...] | None:
        if not self.can(batch):
            return None
        assert self.worker is not None
        try:
            return self.worker.ask(Command(do="window", batch=batch, seconds=seconds), Window).ms
        except EngineUnavailableError as error:
            self.problems[batch] = printable(str(error))
            return None

    def _timing(self, batch: int) -> BatchTiming:
        taken = self.windows.get(batch, [])
        if not taken:
            return BatchTiming(batch=batch, problem=self.problems.get(batch, "it was not timed"))
        percentiles = [float(value) for value in np.percentile(taken, PERCENTILES)]
        images = batch * len(taken)
        joules = self.joules.get(batch)
        return BatchTiming(
            batch=batch,
            runs=len(taken),
            p50_ms=percentiles[50],
            p90_ms=percentiles[90],
            p99_ms=percentiles[99],
            images_per_s=1000 * images / sum(taken),
            percentiles_ms=tuple(round(value, 4) for value in percentiles),
            settled=batch in self.settled,
            energy_mj=None if joules is None else 1000 * joules / images,
            problem=self.problems.get(batch, ""),
        )

    def _stages(self) -> Stages | None:
        if not self.stages:
            return None
        middle = {
            f"{name}_ms": statistics.median(getattr(one, name) for one in self.stages)
            for name in StageTimes.__struct_fields__
        }
        return Stages(frame_size=self.frame_size, **middle)


def _runs(bundles: Sequence[Path], options: BenchOptions, folder: Path) -> Iterator[_Run]:
    """In the order of the command line; frames are written for the workers to read."""
    for number, path in enumerate(bundles):
        bundle = open_bundle(path)
        size = bundle.manifest.frame_size or options.frame_size or DEFAULT_FRAME
        frame, picture = _write_frame(bundle, size, folder / f"frame{number}")
        job = Job(kind="bundle", path=str(path), threads=options.threads, frame=frame, picture=picture)
        for precision in options.precisions or _precisions(bundle):
            for engine in options.engines or ENGINES:
                run = msgspec.structs.replace(job, engine=engine, precision=precision)
                yield _Run(job=run, label=f"{path.name} {engine} {precision}", frame_size=size)
        if options.checkpoint is not None and number == 0:
            weights = None if options.backbone_weights is None else str(options.backbone_weights)
            run = msgspec.structs.replace(
                job,
                kind="torch",
                engine="torch",
                precision="fp32",
                checkpoint=str(options.checkpoint),
                backbone_weights=weights,
            )
            yield _Run(job=run, label=f"{path.name} in PyTorch", frame_size=size)
    for peer in options.peers:
        job = Job(kind="peer", path=str(peer), engine="onnxruntime-cpu", threads=options.threads)
        yield _Run(job=job, label=peer.name, frame_size=DEFAULT_FRAME)


def _precisions(bundle: Bundle) -> list[str]:
    """Of the bundle's graphs; int8 once, since each engine has its own form of it."""
    names = (graph.precision for graph in bundle.manifest.graphs)
    return list(dict.fromkeys("int8" if name.startswith("int8") else name for name in names))


def _measure(
    runs: Sequence[_Run], options: BenchOptions, machine_worker: Worker, reports: Reports
) -> Machine:
    """Time all in turns; the machine with its best speeds of all turns."""
    seconds = options.seconds / ROUNDS
    meter = EnergyMeter()
    peaks: list[Peak] = []
    for batch in options.batches:
        for run in runs:
            if run.can(batch):
                reports.step(f"warming up {run.label}, batch {batch}")
                run.warm_up(batch, seconds)
        for number in range(ROUNDS):
            reports.step(f"batch {batch}, turn {number + 1} of {ROUNDS}")
            peaks.append(machine_worker.ask(Command(do="peak", seconds=seconds), Peak))
            for run in runs:
                run.turn(batch, seconds, meter)
                if batch == options.batches[0]:
                    run.turn_stages(seconds / 2)
    for run in runs:  # once each, and not in turns: the numbers of one row are for comparing with each other
        reports.step(f"sharing {run.label} between threads")
        run.share(seconds)
    return msgspec.structs.replace(
        machine_facts(),
        gflops=max(peak.gflops for peak in peaks),
        copy_gb_s=max(peak.copy_gb_s for peak in peaks),
    )


def _write_frame(bundle: Bundle, size: tuple[int, int], target: Path) -> tuple[str, str]:
    """A synthetic frame as an array and as a JPEG file; their paths."""
    frame = np.ascontiguousarray(synthetic_frames(bundle.manifest.preprocessing, size)[0])
    array, picture = target.with_suffix(".npy"), target.with_suffix(".jpg")
    np.save(array, frame)
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    if not done:
        raise FlowEdgeError(
            f"OpenCV cannot write a JPEG of {size[0]}x{size[1]} pixels. Name another --frame-size."
        )
    picture.write_bytes(encoded.tobytes())
    return str(array), str(picture)


def _now() -> str:
    return utc_now().isoformat()
