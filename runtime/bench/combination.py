"""One combination of bundle, engine and precision: its worker process, and the times that it has given so far."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from flowedge.clock import utc_now
from flowedge.errors import EngineUnavailableError
from flowedge.graph_files import bytes_of_graph
from flowedge.runtime.bench.environment import EnergyMeter, device_memory_mb
from flowedge.runtime.bench.process import Worker
from flowedge.runtime.bench.protocol import (
    Command,
    Job,
    Macs,
    Parity,
    Peak,
    PeakMemory,
    Shared,
    StagesAnswer,
    StageTimes,
    Window,
)
from flowedge.runtime.bench.timing_report import PERCENTILES, BatchTiming, Environment, Row, Stages
from flowedge.text import printable

SHARED_BY: Final = (1, 2, 4)
"""The numbers of threads that share a bundle's detector."""

_PEAK_S: Final = 1.0
_WARM_WINDOWS: Final = 10  # the most windows before the timing starts
_AGREE: Final = 0.05  # relative difference of the medians of two windows, below which a combination is warm


@dataclass(slots=True, kw_only=True, eq=False)
class Combination:
    """One combination while it is measured.

    Times are kept by batch, that is by the number of images of one inference.
    """

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
    own_correlation: float | None = None
    peak_mb: float | None = None
    device_mb: float | None = None
    macs: int | None = None
    device_peak: Peak | None = None
    notes: list[str] = field(default_factory=list)

    def start(self, stack: contextlib.ExitStack) -> None:
        self.date = utc_now().isoformat()
        if self.problem:
            return
        try:
            self.worker = stack.enter_context(Worker(self.job))
        except EngineUnavailableError as error:
            self.problem = printable(str(error))

    def can(self, batch: int) -> bool:
        return self.worker is not None and batch not in self.problems

    def warm_up(self, batch: int, seconds: float) -> None:
        """Run windows until the medians of two in succession agree, or `_WARM_WINDOWS` windows."""
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
        # The meter stops before the window is looked at, so that a window that failed ends its measurement too.
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
        """Take the measurements that are taken once. Memory comes before the self-test, which would add to it."""
        if self.worker is None:
            return
        try:
            self.peak_mb = self.worker.ask(Command(do="memory"), PeakMemory).peak_mb
            # Only a graphics card has memory of its own.
            self.device_mb = (
                None if self.worker.started.device == "cpu" else device_memory_mb(self.worker.pid)
            )
            if self.job.kind == "bundle":
                self.parity = self.worker.ask(Command(do="parity"), Parity)
        except EngineUnavailableError as error:
            self.parity_problem = printable(str(error))
        if self.worker.started.device != "cpu" and self.job.kind == "bundle":
            try:
                self.device_peak = self.worker.ask(Command(do="peak", seconds=_PEAK_S), Peak)
            except EngineUnavailableError as error:
                self.notes.append(printable(f"no share of the device's peak: {error}"))
        # The machine's worker counts the operations, so that the count adds nothing to the memory of this worker.
        if self.worker.started.counted is not None:
            try:
                command = Command(do="macs", graph=self.worker.started.counted)
                self.macs = machine.ask(command, Macs).macs
            except EngineUnavailableError as error:
                self.notes.append(printable(f"no share of the peak: {error}"))

    def row(self, machine: Environment, batches: Sequence[int], command: str) -> Row:
        if self.worker is None:
            return self._row(machine, command)
        # The shares take the fastest batch for the peak, and the first batch for the bandwidth: a larger batch reads
        # each weight once for several images.
        timings = tuple(self._timing(batch) for batch in batches)
        started = self.worker.started
        measured = [timing for timing in timings if timing.p50_ms]
        per_image = [timing.p50_ms / timing.batch for timing in measured if timing.p50_ms]
        # The machine's peak speeds are those of its processor. An engine on another device is compared with those of
        # the device, which its own worker measured.
        peak = self.device_peak
        if started.device == "cpu" and machine.gflops and machine.copy_gb_s:
            peak = Peak(gflops=machine.gflops, copy_gb_s=machine.copy_gb_s)
        peak_share = bandwidth_share = None
        if peak is not None and self.macs and per_image:
            peak_share = 2e-6 * self.macs / min(per_image) / peak.gflops
        if peak is not None and started.graph is not None and measured and measured[0].p50_ms:
            bandwidth_share = 1e-6 * bytes_of_graph(Path(started.graph)) / measured[0].p50_ms / peak.copy_gb_s
        return msgspec.structs.replace(
            self._row(machine, command),
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
            own_correlation=self.own_correlation,
            macs=self.macs,
            peak_share=peak_share,
            bandwidth_share=bandwidth_share,
            device_gflops=None if self.device_peak is None else self.device_peak.gflops,
            device_copy_gb_s=None if self.device_peak is None else self.device_peak.copy_gb_s,
        )

    def _row(self, machine: Environment, command: str) -> Row:
        return Row(
            kind=self.job.kind,
            name=printable(self.job.path),
            engine=self.job.engine,
            precision=self.job.precision,
            threads=self.job.threads,
            date=self.date,
            command=command,
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
        # The runs of all turns count alike, whichever turn they were in.
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
        # Medians of each step do not add up to the median of a frame, but one slow frame does not move them.
        middle = {
            f"{name}_ms": statistics.median(getattr(one, name) for one in self.stages)
            for name in StageTimes.__struct_fields__
        }
        return Stages(frame_size=self.frame_size, **middle)
