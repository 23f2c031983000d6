"""The messages between the bench and its worker processes, each one JSON object on a line."""

from __future__ import annotations

import json
from typing import Literal, TypeAlias, TypeVar

import msgspec

_Message = TypeVar("_Message", bound=msgspec.Struct)

Kind: TypeAlias = Literal["bundle", "torch", "peer", "machine"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that a worker reads, which names what the worker loads.

    Attributes:
        kind: A bundle on an engine, a bundle's checkpoint in PyTorch, a foreign ONNX file, or the machine itself.
        path: The path of the bundle or the file.
        graph: The file that runs in place of ``path``, for a foreign file that was quantised.
        engine: A name of ``ENGINES``, for a bundle or a foreign file.
        precision: The precision of the graph, for a bundle. The precision that OpenVINO computes in, for a foreign
            file. ONNX Runtime takes the precision of a foreign file as it is, and the name is empty.
        threads: The number of CPU threads. The default is the choice of the engine.
        frame: A ``.npy`` file with the source frame, ``(H, W, 3)`` uint8.
        picture: A JPEG file with this frame.
        checkpoint: The checkpoint, for PyTorch.
        backbone_weights: The file of the backbone's weights, for PyTorch.
    """

    kind: Kind
    path: str = ""
    graph: str = ""
    engine: str = ""
    precision: str = ""
    threads: int | None = None
    frame: str = ""
    picture: str = ""
    checkpoint: str = ""
    backbone_weights: str | None = None


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer of a worker, which it gives after the first verdict.

    Attributes:
        engine: The name of the engine or the library that computes.
        version: The version of the library.
        device: The device that the engine or library computes on.
        load_ms: The milliseconds of loading the engine, with the imports of its library.
        first_ms: The milliseconds of the first frame from pixels to verdict, or of the first inference.
        graph: The path of the ONNX file that runs. The path is None for PyTorch.
        counted: The path of the ONNX file whose operations are counted. For a bundle this file is the fp32 graph, since
            graphs of other precisions have the same operations.
        precision: The precision of the bundle's graph that runs. ``int8`` has a form for each kind of device.
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
    """A further line that a worker reads.

    Attributes:
        do: ``window``: time inferences. ``stages``: time each step from a JPEG to a verdict. ``shared``: count the
            frames of threads that share the detector. ``parity``: replay the self-test. ``memory``: the largest
            resident memory so far. ``peak``: the speed of the machine, or that of the engine's device. ``macs``: count
            a graph's multiply-accumulates.
        batch: The number of images of one inference, for a window.
        seconds: The seconds of the measurement, which takes at least three runs.
        graph: The path of the ONNX file, for ``macs``.
        threads: The number of threads that share the detector.
    """

    do: Literal["window", "stages", "shared", "parity", "memory", "peak", "macs"]
    batch: int = 1
    seconds: float = 0.0
    graph: str = ""
    threads: int = 1


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The milliseconds of each inference of a window, in order."""

    ms: tuple[float, ...]


class StageTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The milliseconds that one frame takes from a JPEG file to its verdict.

    Attributes:
        decode: The time from a JPEG file to pixels.
        preprocess: The time from pixels to the graph's input.
        infer: The time of the engine's call.
        decide: The time from the graph's outputs to a verdict.
        overhead: The time that the detector takes beside the engine's call.
    """

    decode: float
    preprocess: float
    infer: float
    decide: float
    overhead: float


class StagesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The times of each frame, in order."""

    frames: tuple[StageTimes, ...]


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of one detector that threads share.

    Attributes:
        threads: The number of threads, each of which inspects one frame after the other.
        frames_per_s: The frames of all threads in a second, from pixels to verdict.
    """

    threads: int
    frames_per_s: float


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of a graph's answers to the bundle's self-test with the expected answers of the fp32 graph.

    Attributes:
        is_right: True when every check of ``flowedge verify`` passed and the maps correlate.
        worst_error: The largest error of the levels, relative to a level's largest magnitude. The error is None where
            it is not a number.
        limit: The largest ``worst_error`` that passes. The limit is None where none applies.
        correlation: The lowest correlation of a frame's map with the map of the recorded levels. The correlation is
            None where a map is flat or not finite.
        failed: The checks that failed, in words.
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
    """The peak speeds of the machine, or of an engine's device.

    Attributes:
        gflops: The speed of a matrix product, in 10^9 operations a second: in float32 on a machine, in the graph's
            precision on a device.
        copy_gb_s: The speed of a copy of memory, in 10^9 bytes a second, read and written.
    """

    gflops: float
    copy_gb_s: float


class Macs(msgspec.Struct, frozen=True, kw_only=True):
    """The number of a graph's multiply-accumulates for one image."""

    macs: int


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a worker cannot answer, sent in place of the answer."""

    problem: str


def line_from(message: msgspec.Struct) -> bytes:
    """Return a message as one line of JSON. Names of files keep the bytes that are no UTF-8, as lone surrogates."""
    return json.dumps(msgspec.to_builtins(message)).encode("ascii") + b"\n"


def struct_from(line: bytes, kind: type[_Message]) -> _Message:
    """Return the message of a line.

    Args:
        line: A line that `line_from` made.
        kind: The message's type.

    Raises:
        msgspec.ValidationError: The line holds a message of another type.
    """
    return msgspec.convert(json.loads(line), kind)
