"""The fastest of a bundle's graphs that is right on this device, measured once and remembered."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.runtime.bench.subjects import window_of
from flowedge.runtime.engine import Engine, engine_module, engine_spec, library_version, open_engine
from flowedge.runtime.engine_cache import engine_cache, graph_hash
from flowedge.runtime.graph_input import GraphInput
from flowedge.runtime.machine import cpu_name, find_nvidia_driver
from flowedge.runtime.selftest import read_selftest
from flowedge.runtime.verify import replay_selftest

_WARM_UP_S: Final = 0.3
_MEASURED_S: Final = 1.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One graph on one engine.

    Attributes:
        precision: Which graph.
        median_ms: Of one image, in ms of the engine's own call; None where it did not run or was not right.
        problem: Why it is out of the question, else empty.
    """

    precision: str
    median_ms: float | None
    problem: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what follows from it.

    Attributes:
        precision: The fastest that was right.
        engine: The engine it was measured on.
        measured: All of them, in the manifest's order.
    """

    precision: str
    engine: str
    measured: tuple[Measured, ...]


def fastest_precision(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> Choice:
    """Replay each graph's self-test and time it on one image; what was once chosen here is remembered.

    The choice belongs to the graphs, the engine and its version, the device and the number of threads. A typed graph
    that was made on images has passed its gate; here it must pass its self-test as well.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES``; None takes the first that opens the fp32 graph.
        threads: CPU threads of one inference.

    Raises:
        EngineUnavailableError: The engine is not there, or no graph of the bundle is right on it.
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    if engine is None:
        session = open_engine(None, bundle, "fp32", threads=threads)
        engine = session.name
        session.close()
    engine_module(engine_spec(engine))  # says what to install where it is not there
    precisions = precisions_on(bundle, engine)
    cache, name = engine_cache(), _name_of(bundle, engine, precisions, threads)
    with contextlib.suppress(msgspec.MsgspecError):  # not there, or damaged
        return msgspec.json.decode(cache.read_extra(name), type=Choice)
    measured = tuple(_measure(bundle, engine, name, threads) for name in precisions)
    right = [(one.median_ms, one.precision) for one in measured if one.median_ms is not None]
    if not right:
        reasons = "; ".join(f"{one.precision}: {one.problem}" for one in measured)
        raise EngineUnavailableError(
            f"no graph of {bundle.path} is right on {engine}: {reasons}. Run flowedge verify for the whole report."
        )
    choice = Choice(precision=min(right)[1], engine=engine, measured=measured)
    cache.write_extra(name, msgspec.json.encode(choice))
    return choice


def precisions_on(bundle: Bundle, engine: str) -> tuple[str, ...]:
    """The bundle's graphs that are meant for an engine's device; of the two forms of int8 it is one."""
    device = engine_spec(engine).device
    other = {"int8-cpu", "int8-gpu"} - {bundle.manifest.precision_on(device, "int8")}
    return tuple(graph.precision for graph in bundle.manifest.graphs if graph.precision not in other)


def _measure(bundle: Bundle, engine: str, precision: str, threads: int | None) -> Measured:
    try:
        session = open_engine(engine, bundle, precision, threads=threads)
    except (EngineUnavailableError, BundleError) as error:
        return Measured(precision=precision, median_ms=None, problem=str(error))
    try:
        failed = [check.name for check in replay_selftest(bundle, session) if not check.passed]
        if failed:
            return Measured(precision=precision, median_ms=None, problem=f"not right: {', '.join(failed)}")
        return Measured(precision=precision, median_ms=_median_ms(bundle, session), problem="")
    except EngineUnavailableError as error:
        return Measured(precision=precision, median_ms=None, problem=str(error))
    finally:
        session.close()


def _median_ms(bundle: Bundle, session: Engine) -> float:
    image = GraphInput(bundle.manifest)(read_selftest(bundle).frames[:1])
    window_of(lambda: session.infer(image), _WARM_UP_S)
    return float(np.median(window_of(lambda: session.infer(image), _MEASURED_S).ms))


def _name_of(bundle: Bundle, engine: str, precisions: Sequence[str], threads: int | None) -> str:
    """Of a choice in the cache."""
    digest = hashlib.sha256()
    parts = [
        engine,
        library_version(engine_spec(engine)),
        cpu_name(),
        *find_nvidia_driver().names,
        str(threads),
    ]
    parts += [f"{name} {graph_hash(bundle, name)}" for name in precisions]
    for part in parts:
        digest.update(part.encode() + b"\n")
    return f"precision/{digest.hexdigest()[:32]}.json"
