"""What a bench found: plain frozen data, written as JSON and drawn by ``markdown`` and ``page``."""

from __future__ import annotations

from typing import Final

import msgspec

from flowedge.runtime.bench.protocol import Kind, Parity, Shared

SCHEMA: Final = 1
PERCENTILES: Final = tuple(range(101))


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured.

    Attributes:
        cpu: The processor's name.
        cores: How many this process may use.
        memory_gb: 10^9 bytes.
        platform: The operating system.
        python: Its version.
        gflops: The largest float32 matrix product's speed that was seen, 10^9 operations a second.
        copy_gb_s: The fastest copy of memory that one thread made, 10^9 bytes a second, read and written.
    """

    cpu: str
    cores: int
    memory_gb: float
    platform: str
    python: str
    gflops: float | None = None
    copy_gb_s: float | None = None


class BatchTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Inferences with one batch.

    Attributes:
        batch: Images of one inference.
        runs: How many were timed.
        p50_ms: Of one inference, whatever its batch.
        p90_ms: Likewise.
        p99_ms: Likewise.
        images_per_s: Over all runs.
        percentiles_ms: The percentiles 0, 1, … 100.
        settled: The medians of successive windows agreed before the timing began.
        energy_mj: Of one image, 10^-3 joules of the whole device; None where it reports none.
        problem: Why it was not measured; empty when it was.
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
    """Medians of one frame's road at batch 1, ms.

    Attributes:
        frame_size: ``(height, width)`` of the source frame.
        decode_ms: From a JPEG file to pixels.
        preprocess_ms: From pixels to the graph's input.
        infer_ms: The engine's own call.
        decide_ms: From the graph's outputs to a verdict.
        overhead_ms: All that FlowEdge takes around the engine's call, decoding apart.
    """

    frame_size: tuple[int, int]
    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    decide_ms: float
    overhead_ms: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One combination, each measured in a process of its own.

    Attributes:
        kind: A bundle, its checkpoint in PyTorch, or a foreign ONNX file.
        name: The bundle's or file's path, printable.
        engine: What computed.
        version: Of its library; empty when it did not start.
        device: What it computed on.
        precision: Of the graph; empty for a foreign file.
        threads: CPU threads asked for; None left it to the engine.
        date: ISO 8601, UTC.
        command: The command line.
        machine: Where.
        problem: Why there is nothing; empty when there is.
        timings: By batch.
        cold_start_ms: From the start of the process to the first verdict (without one, the first inference).
        load_ms: To a loaded engine, its library's import included.
        first_ms: The first frame, from pixels to verdict.
        peak_resident_mb: The process's largest resident memory, 10^6 bytes.
        device_memory_mb: The process's memory on a GPU; None where there is none or it is not reported.
        stages: Where the time goes; of bundles.
        shared: The frames per second of threads that share one detector, by the number of threads; of bundles.
        parity: Whether it is right; of bundles.
        parity_problem: Why that is not known.
        macs: Multiply-accumulates of one image.
        peak_share: Of the machine's matrix peak, in the fastest batch; of CPU engines.
        bandwidth_share: What reading each weight once takes of the machine's bandwidth, at the first batch.
        notes: What else should be known.
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
    macs: int | None = None
    peak_share: float | None = None
    bandwidth_share: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Short and for people: file, engine, precision."""
        file = self.name.rstrip("/").rpartition("/")[2]
        return " ".join(part for part in (file, self.engine, self.precision) if part)

    @property
    def is_wrong(self) -> bool:
        """It answered, and not what the reference answers."""
        return self.parity is not None and not self.parity.is_right

    @property
    def first_timing(self) -> BatchTiming | None:
        """At the first batch that was measured."""
        return next((timing for timing in self.timings if timing.p50_ms is not None), None)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything.

    Attributes:
        schema: Always ``SCHEMA``.
        flowedge_version: The version that measured.
        date: ISO 8601, UTC: the start.
        command: The command line.
        machine: Where.
        seconds: How long each combination was timed per batch.
        rows: In the order of the command line.
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
    """Indented UTF-8 JSON; what is not a finite number is null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
