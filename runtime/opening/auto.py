"""Choose the fastest engine and graph that is right on this device. The choice is measured once and stored."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import graph_hash
from flowedge.runtime.device.machine import cpu_name, find_nvidia_driver
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.engine import choosable_engines, engine_module, engine_spec, library_version
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.proof import prove
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.timing import window_of
from flowedge.runtime.opening.unproven import open_unproven

_LOG: Final = logging.getLogger(__name__)

_WARM_UP_S: Final = 0.3
_MEASURED_S: Final = 1.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The measurement of one graph on one engine.

    Attributes:
        engine: The name of the engine.
        precision: The precision of the graph.
        median_ms: The median time of the engine's call with one image, in ms. The time is None where the graph did
            not run or was not right.
        problem: The reason why the graph cannot be chosen. The reason is empty for a graph that can be chosen.
    """

    engine: str
    precision: str
    median_ms: float | None
    problem: str

    def __str__(self) -> str:
        time = "" if self.median_ms is None else f" {self.median_ms:.1f} ms"
        return f"{self.engine} {self.precision}{time}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen graph and engine, and the measurements behind the choice.

    Attributes:
        precision: The precision of the fastest graph that was right.
        engine: The engine that it was measured on.
        measured: All measurements, by engine in the order of choice, and by graph in the manifest's order.
        not_built: Sentences about installed engines that have to be built first.
    """

    precision: str
    engine: str
    measured: tuple[Measured, ...]
    not_built: tuple[str, ...] = ()


def fastest_precision(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> Choice:
    """Choose the fastest graph that is right here, or take the stored choice.

    The choice belongs to the graphs, the engines and their versions, the compiled engines, the device and the
    number of threads. A converted graph has passed its gate on images. Here it must also pass its self-test.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES``. Without a name, all engines are compared that may be chosen without one.
        threads: The number of CPU threads of one inference.

    Raises:
        EngineUnavailableError: The engine is not there, or no graph of the bundle is right on any.
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    engines = _compared(engine)
    content = device_cache().read_extra(_name_of(bundle, engines, threads))
    with contextlib.suppress(msgspec.MsgspecError):  # the record is not there, or is damaged
        choice = msgspec.json.decode(content, type=Choice)
        if _is_possible(choice, bundle, engines):
            _LOG.info("the choice of %s on %s is stored", choice.precision, choice.engine)
            return choice
    return choose_anew(bundle, engine, threads=threads)


def choose_anew(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> Choice:
    """Replay each graph's self-test, time it on one image, and store the choice in place of an older one.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES``. Without a name, all engines are compared that may be chosen without one.
        threads: The number of CPU threads of one inference.

    Raises:
        EngineUnavailableError: The engine is not there, or no graph of the bundle is right on any.
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    engines = _compared(engine)
    measured: list[Measured] = []
    not_built: list[str] = []
    closed: list[str] = []
    for one in engines:
        graphs = precisions_on(bundle, one)
        found: list[Measured] = []
        problems: list[Exception] = []
        for each in graphs:
            try:
                session = open_unproven(one, bundle, each, threads=threads)
            except (EngineUnavailableError, BundleError) as error:
                found.append(_out_of_the_question(one, each, error))
                problems.append(error)
            else:
                found.append(_measure(bundle, session, threads))
        if engine is None and len(problems) == len(graphs):  # nobody named this engine, and it runs no graph
            (not_built if isinstance(problems[0], EngineNotBuiltError) else closed).append(
                _in_one_line(problems[0])
            )
        else:
            measured += found
    right = [(one.median_ms, one.precision, one.engine) for one in measured if one.median_ms is not None]
    if not right:
        of_problem: dict[str, list[str]] = {}
        for graph in measured:
            of_problem.setdefault(graph.problem, []).append(str(graph))
        reasons = [f"{', '.join(names)}: {problem}" for problem, names in of_problem.items()]
        raise EngineUnavailableError(
            f"no graph of {bundle.path} runs here and is right on {engine or 'any engine'}: "
            f"{'; '.join([*reasons, *not_built, *closed])} Run flowedge verify for the whole report."
        )
    _, precision, fastest = min(right)
    _LOG.info("measured %s", "; ".join(f"{one} {one.problem}".rstrip() for one in measured))
    choice = Choice(precision=precision, engine=fastest, measured=tuple(measured), not_built=tuple(not_built))
    device_cache().write_extra(_name_of(bundle, engines, threads), msgspec.json.encode(choice))
    return choice


def _compared(engine: str | None) -> list[str]:
    """Name the engines to compare: the given one, or all that may be chosen without a name.

    Raises:
        EngineUnavailableError: The given engine is unknown or not installed.
    """
    if engine is None:
        return [spec.name for spec in choosable_engines()]
    engine_module(engine_spec(engine))  # an error names the package to install
    return [engine]


def _is_possible(choice: Choice, bundle: Bundle, engines: Sequence[str]) -> bool:
    """Check that a stored choice could be one of this machine, because the cache is untrusted.

    Each graph that the record names must be one that is compared, the chosen one must be among those that were right,
    and its sentences must be of printable characters, since they are shown.
    """
    compared = {(engine, precision) for engine in engines for precision in precisions_on(bundle, engine)}
    right = {
        (one.engine, one.precision)
        for one in choice.measured
        if one.median_ms is not None and math.isfinite(one.median_ms) and one.median_ms >= 0
    }
    sentences = (*choice.not_built, *(one.problem for one in choice.measured))
    return (
        (choice.engine, choice.precision) in right
        and {(one.engine, one.precision) for one in choice.measured} <= compared
        and all(sentence.isprintable() for sentence in sentences)
    )


def precisions_on(bundle: Bundle, engine: str) -> tuple[str, ...]:
    """Name the graphs of a bundle that are meant for an engine's device. The INT8 graph is the one for the device."""
    device = engine_spec(engine).device
    other = {"int8-cpu", "int8-gpu"} - {bundle.manifest.precision_on(device, "int8")}
    return tuple(graph.precision for graph in bundle.manifest.graphs if graph.precision not in other)


def _measure(bundle: Bundle, session: Opened, threads: int | None) -> Measured:
    """Prove an engine by the self-test, time it where it is right, and close it."""
    engine, precision = session.name, session.precision
    try:
        prove(bundle, session, threads=threads)
        return Measured(engine=engine, precision=precision, median_ms=_median_ms(bundle, session), problem="")
    except EngineUnavailableError as error:
        return _out_of_the_question(engine, precision, error)
    finally:
        session.close()


def _out_of_the_question(engine: str, precision: str, problem: Exception) -> Measured:
    return Measured(engine=engine, precision=precision, median_ms=None, problem=_in_one_line(problem))


def _in_one_line(problem: Exception) -> str:
    """Give a message in printable characters and without line breaks."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(problem)).split())


def _median_ms(bundle: Bundle, session: Opened) -> float:
    image = GraphInput(bundle.manifest)(read_selftest(bundle).frames[:1])
    window_of(lambda: session.infer(image), _WARM_UP_S)
    return float(np.median(window_of(lambda: session.infer(image), _MEASURED_S)))


def _name_of(bundle: Bundle, engines: Sequence[str], threads: int | None) -> str:
    """Return the name of a stored choice in the device cache."""
    digest = hashlib.sha256()
    parts = [cpu_name(), *find_nvidia_driver().names, str(threads)]
    for engine in engines:
        parts += [engine, library_version(engine_spec(engine))]
        parts += [f"{name} {graph_hash(bundle, name)}" for name in precisions_on(bundle, engine)]
    if any(engine_spec(engine).compiled for engine in engines):
        parts += sorted(file.path.name for file in device_cache().files() if file.facts is not None)
    for part in parts:
        digest.update(part.encode() + b"\n")
    return f"precision/{digest.hexdigest()[:32]}.json"
