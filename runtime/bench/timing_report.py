"""The report of a benchmark, as frozen data that is written as JSON and drawn by ``table`` and ``timing_page``."""

from __future__ import annotations

from typing import Final

import msgspec

from flowedge.runtime.bench.protocol import Kind, Parity, Shared

SCHEMA: Final = 1
PERCENTILES: Final = tuple(range(101))


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and its software, on which a benchmark ran.

    Attributes:
        cpu: The name of the processor.
        cores: The number of cores that this process may use.
        memory_gb: The memory in 10^9 bytes.
        platform: The operating system.
        python: The version of Python.
        gflops: The highest speed of a float32 matrix product that was seen, in 10^9 operations a second.
        copy_gb_s: The speed of the fastest copy of memory by one thread, in 10^9 bytes a second, read and written.
    """

    cpu: str
    cores: int
    memory_gb: float
    platform: str
    python: str
    gflops: float | None = None
    copy_gb_s: float | None = None


class BatchTiming(msgspec.Struct, frozen=True, kw_only=True):
    """The times of inferences with one batch.

    Attributes:
        batch: The number of images of one inference.
        runs: The number of timed inferences.
        p50_ms: The median of the milliseconds of one inference, which is of the whole batch.
        p90_ms: The 90th percentile of the milliseconds of one inference.
        p99_ms: The 99th percentile of the milliseconds of one inference.
        images_per_s: The images per second over all runs.
        percentiles_ms: The percentiles 0, 1, … 100 of the milliseconds of one inference.
        settled: True when the medians of successive windows agreed before the timing began.
        energy_mj: The energy of the whole device for one image, in 10^-3 joules. The energy is None where the
            device reports none.
        problem: The reason why nothing was measured. The reason is empty when there are times.
    """

    batch: int
    runs: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    percentiles_ms: tuple[float, ...] = ()
    settled: bool = False
    energy_mj: float | None = None
    problem: str = ""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """The median times of one frame from a JPEG file to its verdict at batch 1, in milliseconds.

    Attributes:
        frame_size: The ``(height, width)`` of the source frame.
        decode_ms: The time from a JPEG file to pixels.
        preprocess_ms: The time from pixels to the graph's input.
        infer_ms: The time of the engine's call.
        decide_ms: The time from the graph's outputs to a verdict.
        overhead_ms: The time that FlowEdge takes beside the engine's call, without decoding.
    """

    frame_size: tuple[int, int]
    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    decide_ms: float
    overhead_ms: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One combination, which was measured in a process of its own.

    Attributes:
        kind: The kind of subject: a bundle, its checkpoint in PyTorch, or a foreign ONNX file.
        name: The path of the bundle or the file, with printable characters only.
        engine: The name of the engine or the library that computed.
        version: The version of the library. The version is empty when the subject did not start.
        device: The device that the engine or library computed on.
        precision: The precision of the graph. The precision is empty for a foreign file that a library runs as it is.
        threads: The chosen number of CPU threads. The number is None where the engine chose.
        date: The time of the start in UTC, in the format ISO 8601.
        command: The command line.
        machine: The machine that the combination was measured on.
        problem: The reason why the subject did not start. The reason is empty when the subject started.
        timings: The times, by batch.
        cold_start_ms: The milliseconds from the start of the process to the first verdict, or to the first
            inference where there is no verdict.
        load_ms: The milliseconds of loading the engine, with the import of its library.
        first_ms: The milliseconds of the first frame, from pixels to verdict.
        peak_resident_mb: The largest resident memory of the process, in 10^6 bytes.
        device_memory_mb: The memory of the process on a GPU, in 10^6 bytes. The memory is None where nothing
            reports it.
        stages: The times of the steps of one frame. Only bundles have them.
        shared: The frames per second of threads that share one detector, by the number of threads. Only bundles
            have them.
        parity: The comparison with the expected answers. Only bundles have it.
        parity_problem: The reason why there is no comparison.
        own_correlation: For a foreign file that was quantised, the lowest correlation of its map with the map of the
            same file in float32. The correlation is None for other rows, and where a map is flat or not finite.
        macs: The number of multiply-accumulates for one image.
        peak_share: The reached share of the peak speed of matrix products, at the fastest batch. The peak is that of
            the machine, or for an engine on another device ``device_gflops``.
        bandwidth_share: The share of the bandwidth that reading each weight once takes, at the first batch. The
            bandwidth is that of the machine, or for an engine on another device ``device_copy_gb_s``.
        device_gflops: The fastest chain of matrix products on the engine's device, in the precision of the graph, in
            10^9 operations a second. INT8 has that of float16. The speed is None on a CPU and where it was not
            measured.
        device_copy_gb_s: The fastest chain of copies on the engine's device, in 10^9 bytes a second, read and written.
        notes: Further sentences about the measurement.
    """

    kind: Kind
    name: str
    engine: str
    version: str = ""
    device: str = ""
    precision: str = ""
    threads: int | None = None
    date: str
    command: str
    machine: Environment
    problem: str = ""
    timings: tuple[BatchTiming, ...] = ()
    cold_start_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_resident_mb: float | None = None
    device_memory_mb: float | None = None
    stages: Stages | None = None
    shared: tuple[Shared, ...] = ()
    parity: Parity | None = None
    parity_problem: str = ""
    own_correlation: float | None = None
    macs: int | None = None
    peak_share: float | None = None
    bandwidth_share: float | None = None
    device_gflops: float | None = None
    device_copy_gb_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A short name for people: file, engine and precision."""
        file = self.name.rstrip("/").rpartition("/")[2]
        return " ".join(part for part in (file, self.engine, self.precision) if part)

    @property
    def is_wrong(self) -> bool:
        """True when it answered, and its answers are not the expected ones."""
        return self.parity is not None and not self.parity.is_right

    @property
    def first_timing(self) -> BatchTiming | None:
        """The times of the first batch that was measured, or None where no batch was."""
        return next((timing for timing in self.timings if timing.p50_ms is not None), None)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report of a benchmark.

    Attributes:
        schema: Always ``SCHEMA``.
        flowedge_version: The version that measured.
        date: The time of the start in UTC, in the format ISO 8601.
        command: The command line.
        machine: The machine that it ran on.
        seconds: The seconds for which each combination was timed at each batch.
        rows: The combinations, in the order of the command line.
        wrong: The labels of the rows that answered wrongly.
    """

    schema: int
    flowedge_version: str
    date: str
    command: str
    machine: Environment
    seconds: float
    rows: tuple[Row, ...]
    wrong: tuple[str, ...]


def json_from_report(report: Report) -> bytes:
    """Return a report as indented UTF-8 JSON. A number that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
