"""Keep the choice of ``--precision auto`` in the device cache, with the measurements behind it and its reason.

The content of the cache is untrusted, so a stored choice counts only where it could be one of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from flowedge.bundle import Bundle
from flowedge.errors import EngineCacheError
from flowedge.packages import installed_version
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import graph_hash
from flowedge.runtime.device.machine import cpu_name, find_nvidia_driver
from flowedge.runtime.opening.engine import engine_spec
from flowedge.runtime.opening.engine_contract import EngineSpec

CLEARLY: Final = 0.95
"""The share of another time that a time must stay under, so that it counts as faster on a machine that does other work.

A lower precision, an engine that comes later in the order, and more threads are taken only where they are clearly
faster."""

_MOST_THREADS: Final = 4096


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement of one graph on one engine.

    Attributes:
        engine: The name of the engine.
        precision: The precision of the graph.
        median_ms: The median time of the engine's call with one image, in ms. The time is None where the graph did
            not run or was not right.
        problem: The reason why the graph cannot be chosen. The reason is empty for a graph that can be chosen.
        threads: The number of CPU threads. The number is None where the engine chose.
    """

    engine: str
    precision: str
    median_ms: float | None
    problem: str
    threads: int | None = None

    def __str__(self) -> str:
        time = "" if self.median_ms is None else f" {self.median_ms:.1f} ms"
        return f"{self.engine} {self.precision}{time}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen graph, engine and number of threads, and the measurements behind the choice.

    Attributes:
        precision: The precision of the chosen graph.
        engine: The engine that it was measured on.
        measured: All measurements, by engine in the order of choice, and by graph in the manifest's order.
        not_built: Sentences about installed engines that have to be built first.
        threads: The chosen number of CPU threads of one inference. The number is None where the engine chooses.
        other_threads: The measurements of the chosen graph with other numbers of threads.
        reason: One sentence with the times that decided.
    """

    precision: str
    engine: str
    measured: tuple[Measured, ...]
    not_built: tuple[str, ...] = ()
    threads: int | None = None
    other_threads: tuple[Measured, ...] = ()
    reason: str = ""


class _Speed(msgspec.Struct, frozen=True, kw_only=True):
    """The time of one graph on one engine, with the version of the engine's package."""

    engine: str
    precision: str
    ms: float
    version: str | None


def read_choice(name: str, bundle: Bundle, compared: Sequence[tuple[str, str]]) -> Choice | None:
    """Read a stored choice. The value is None where there is none, or where it could not be one of this machine.

    Args:
        name: The name of the choice in the device cache.
        bundle: The bundle.
        compared: The engines and precisions that are compared here.
    """
    with contextlib.suppress(msgspec.MsgspecError):
        choice = msgspec.json.decode(device_cache().read_extra(name), type=Choice)
        return choice if _is_possible(choice, compared) else None
    return None


def write_choice(name: str, bundle: Bundle, choice: Choice, threads: int | None) -> None:
    """Store a choice, and the times of its engines, which decide the order of engines that nobody names."""
    device_cache().write_extra(name, msgspec.json.encode(choice))
    speeds = [
        _Speed(
            engine=one.engine,
            precision=one.precision,
            ms=one.median_ms,
            version=installed_version(engine_spec(one.engine).needs),
        )
        for one in choice.measured
        if one.median_ms is not None
    ]
    if len({speed.engine for speed in speeds}) > 1:
        device_cache().write_extra(_name_of_speeds(bundle, threads), msgspec.json.encode(speeds))


def faster_first(
    bundle: Bundle, precision: str, engines: Sequence[EngineSpec], threads: int | None
) -> tuple[list[EngineSpec], str]:
    """Put an engine that was measured clearly faster here before those that come before it in the order of choice.

    Args:
        bundle: The bundle.
        precision: The precision of the graph, where ``int8`` means the INT8 graph for the engine's device.
        engines: All engines in their order.
        threads: The number of CPU threads of one inference, with which the times were measured.

    Returns:
        The engines, and a sentence with the measured times, which is empty where the order is as it was.
    """
    order = list(engines)
    speeds: list[_Speed] = []
    with contextlib.suppress(msgspec.MsgspecError, EngineCacheError):
        content = device_cache().read_extra(_name_of_speeds(bundle, threads))
        speeds = msgspec.json.decode(content, type=list[_Speed])
    times = {
        (speed.engine, speed.precision): speed.ms
        for speed in speeds
        if math.isfinite(speed.ms) and speed.ms >= 0
    }
    versions = {speed.engine: speed.version for speed in speeds}

    def time_on(spec: EngineSpec) -> float | None:
        return times.get((spec.name, bundle.manifest.precision_on(spec.device, precision)))

    measured = [
        spec
        for spec in order
        if spec.order is not None
        and time_on(spec) is not None
        and versions[spec.name] == installed_version(spec.needs)
    ]
    if not measured:
        return order, ""
    fastest = min(measured, key=lambda spec: time_on(spec) or 0.0)
    first = measured[0]
    if (time_on(fastest) or 0.0) >= CLEARLY * (time_on(first) or 0.0):
        return order, ""
    order.remove(fastest)
    order.insert(order.index(first), fastest)
    listed = ", ".join(f"{spec.name} {time_on(spec):.1f} ms" for spec in (fastest, first))
    return order, f"measured as the fastest here in {precision}: {listed}"


def _name_of_speeds(bundle: Bundle, threads: int | None) -> str:
    """Return the name of the stored times, which needs no import of any engine's library."""
    digest = hashlib.sha256()
    graphs = sorted(graph.precision for graph in bundle.manifest.graphs)
    for part in [
        *(cpu_name(), *find_nvidia_driver().names, str(threads)),
        *(f"{name} {graph_hash(bundle, name)}" for name in graphs),
    ]:
        digest.update(part.encode() + b"\n")
    return f"precision/speeds-{digest.hexdigest()[:32]}.json"


def _is_possible(choice: Choice, compared: Sequence[tuple[str, str]]) -> bool:
    """Check that a stored choice could be one of this machine.

    Each graph that the record names must be one that is compared, the chosen one must be among those that were right,
    the numbers must make sense, and the sentences must be of printable characters, since they are shown.
    """
    every = (*choice.measured, *choice.other_threads)
    right = {
        (one.engine, one.precision)
        for one in choice.measured
        if one.median_ms is not None and math.isfinite(one.median_ms) and one.median_ms >= 0
    }
    counts = [choice.threads, *(one.threads for one in every)]
    sentences = (*choice.not_built, choice.reason, *(one.problem for one in every))
    return (
        (choice.engine, choice.precision) in right
        and {(one.engine, one.precision) for one in every} <= set(compared)
        and all(count is None or 1 <= count <= _MOST_THREADS for count in counts)
        and all(sentence.isprintable() for sentence in sentences)
    )
