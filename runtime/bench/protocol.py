"""What the bench and its worker processes say to each other: one JSON object a line."""

from __future__ import annotations

import json
from typing import Literal, TypeAlias, TypeVar

import msgspec

_Message = TypeVar("_Message", bound=msgspec.Struct)

Kind: TypeAlias = Literal["bundle", "torch", "peer", "machine"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that a worker reads: what it is to load.

    Attributes:
        kind: A bundle on an engine, a bundle's checkpoint in PyTorch, a foreign ONNX file, or the machine itself.
        path: The bundle or the file.
        engine: For a bundle: a name of ``ENGINES``.
        precision: For a bundle: which of its graphs.
        threads: CPU threads; None leaves it to the engine.
        frame: A ``.npy`` file with the source frame, ``(H, W, 3)`` uint8.
        picture: The same frame as a JPEG file.
        checkpoint: For PyTorch.
        backbone_weights: For PyTorch, as for the export.
    """

    kind: Kind
    path: str = ""
    engine: str = ""
    precision: str = ""
    threads: int | None = None
    frame: str = ""
    picture: str = ""
    checkpoint: str = ""
    backbone_weights: str | None = None


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's first answer, after the first verdict.

    Attributes:
        engine: What computes.
        version: Of its library.
        device: What it computes on.
        load_ms: From the call that loads to a loaded engine, imports of the engine's library included.
        first_ms: The first frame, from pixels to verdict; the first inference where there is no verdict.
        graph: The ONNX file that runs, if it is one.
        counted: The one whose operations are counted: a bundle's fp32 graph, which has those of every precision.
        precision: Of the bundle's graph that runs: ``int8`` has a form for each kind of device.
    """

    engine: str
    version: str
    device: str
    load_ms: float
    first_ms: float
    graph: str | None = None
    counted: str | None = None
    precision: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Every further line that a worker reads.

    Attributes:
        do: ``window``: time inferences. ``stages``: time the road from a JPEG to a verdict. ``shared``: count the
            frames of threads that share the detector. ``parity``: replay the self-test. ``memory``: the largest
            resident memory so far. ``peak``: the machine's own speed. ``macs``: count a graph's multiply-accumulates.
        batch: Of a window.
        seconds: How long; at least three runs.
        graph: Whose ``macs``.
        threads: The number of threads that share the detector.
    """

    do: Literal["window", "stages", "shared", "parity", "memory", "peak", "macs"]
    batch: int = 1
    seconds: float = 0.0
    graph: str = ""
    threads: int = 1


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of each inference, in order."""

    ms: tuple[float, ...]


class StageTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one frame on its road.

    Attributes:
        decode: From a JPEG file to pixels.
        preprocess: From pixels to the graph's input.
        infer: The engine's own call.
        decide: From the graph's outputs to a verdict.
        overhead: All that the detector takes around the engine's call.
    """

    decode: float
    preprocess: float
    infer: float
    decide: float
    overhead: float


class StagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of each frame, in order."""

    frames: tuple[StageTimes, ...]


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of one detector that threads share.

    Attributes:
        threads: The number of threads; each inspects one frame after the other.
        frames_per_s: The frames of all threads in a second, from pixels to verdict.
    """

    threads: int
    frames_per_s: float


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """A graph's answers to the bundle's self-test against the recorded ones of the fp32 reference.

    Attributes:
        is_right: Every check of ``flowedge verify`` passed, and the maps correlate.
        worst_error: Of the levels, relative to a level's largest magnitude; None where it is not a number.
        limit: The largest ``worst_error`` that passes; None without one.
        correlation: Of the map with the one that the recorded levels give, on the frame where it is lowest; None where
            a map is flat or not finite.
        failed: What failed, in words.
    """

    is_right: bool
    worst_error: float | None
    limit: float | None
    correlation: float | None
    failed: tuple[str, ...] = ()


class PeakMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The largest resident memory of a process, in 10^6 bytes."""

    peak_mb: float | None


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine can do at best: a float32 matrix product, and a copy of memory (bytes read and written)."""

    gflops: float
    copy_gb_s: float


class Macs(msgspec.Struct, frozen=True, kw_only=True):
    """Multiply-accumulates of a graph for one image."""

    macs: int


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answer is missing; an answer of its own in place of any other."""

    problem: str


def line_from(message: msgspec.Struct) -> bytes:
    """Return a message as one line of JSON. Names of files keep the bytes that are no UTF-8, as lone surrogates."""
    return json.dumps(msgspec.to_builtins(message)).encode("ascii") + b"\n"


def struct_from(line: bytes, kind: type[_Message]) -> _Message:
    """Return the message of a line.

    Args:
        line: What ``line_from`` gave.
        kind: The message's type.

    Raises:
        msgspec.ValidationError: The line holds a message of another type.
    """
    return msgspec.convert(json.loads(line), kind)
