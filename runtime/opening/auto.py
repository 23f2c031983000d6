"""Choose the fastest engine, graph and number of threads that are right here, measure once, and store the choice."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from flowedge.bundle import Bundle
from flowedge.errors import BundleError, EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.device.cores import find_cores, suitable_threads
from flowedge.runtime.device.device_cache import device_cache
from flowedge.runtime.device.engine_file import graph_hash
from flowedge.runtime.device.machine import cpu_name, find_nvidia_driver, slow_precisions
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.choice import CLEARLY, Choice, Measured, read_choice, write_choice
from flowedge.runtime.opening.engine import choosable_engines, engine_module, engine_spec, library_version
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.proof import prove
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.timing import window_of
from flowedge.runtime.opening.unproven import open_unproven

_LOG: Final = logging.getLogger(__name__)

_WARM_UP_S: Final = 0.3
_MEASURED_S: Final = 1.0
_TURNS: Final = 4
_NEAR: Final = (
    1.3  # times the fastest, up to which a graph is measured a second time, in turns with the others
)


def fastest_precision(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> Choice:
    """Choose the fastest graph that is right here, or take the stored choice.

    The choice belongs to the graphs, the engines and their versions, the compiled engines, the device and the
    number of threads. A converted graph has passed its gate on images. Here it must also pass its self-test.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES``. Without a name, all engines are compared that may be chosen without one.
        threads: The number of CPU threads of one inference. Without a number it is chosen too.

    Raises:
        EngineUnavailableError: The engine is not there, or no graph of the bundle is right on any.
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    engines = _compared(engine)
    compared = [(one, precision) for one in engines for precision in precisions_on(bundle, one)]
    choice = read_choice(_name_of(bundle, engines, threads), bundle, compared)
    if choice is not None:
        _LOG.info("the choice of %s on %s is stored", choice.precision, choice.engine)
        return choice
    return choose_anew(bundle, engine, threads=threads)


def choose_anew(bundle: Bundle, engine: str | None = None, *, threads: int | None = None) -> Choice:
    """Replay each graph's self-test, time it on one image, and store the choice in place of an older one.

    A graph of a precision that this processor computes in wider numbers is not measured on the CPU.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES``. Without a name, all engines are compared that may be chosen without one.
        threads: The number of CPU threads of one inference. Without a number it is chosen too.

    Raises:
        EngineUnavailableError: The engine is not there, or no graph of the bundle is right on any.
        EngineCacheError: ``FLOWEDGE_CACHE_SIZE`` is not a size.
    """
    engines = _compared(engine)
    measured: list[Measured] = []
    not_built: list[str] = []
    closed: list[str] = []
    first_threads = suitable_threads(threads)
    for one in engines:
        graphs = precisions_on(bundle, one)
        found: list[Measured] = []
        problems: list[Exception] = []
        for each in graphs:
            slow = slow_precisions().get(each, "") if engine_spec(one).device == "cpu" else ""
            if slow and len(graphs) > 1:
                found.append(_out_of_the_question(one, each, slow))
                continue
            try:
                session = open_unproven(one, bundle, each, threads=first_threads)
            except (EngineUnavailableError, BundleError) as error:
                found.append(_out_of_the_question(one, each, error))
                problems.append(error)
            else:
                found.append(_measure(bundle, session))
        if engine is None and problems and not any(graph.median_ms is not None for graph in found):
            # Nobody named this engine, and it runs no graph.
            (not_built if isinstance(problems[0], EngineNotBuiltError) else closed).append(
                _in_one_line(problems[0])
            )
        else:
            measured += found
    if not any(one.median_ms is not None for one in measured):
        of_problem: dict[str, list[str]] = {}
        for graph in measured:
            of_problem.setdefault(graph.problem, []).append(str(graph))
        reasons = [f"{', '.join(names)}: {problem}" for problem, names in of_problem.items()]
        raise EngineUnavailableError(
            f"no graph of {bundle.path} runs here and is right on {engine or 'any engine'}: "
            f"{'; '.join([*reasons, *not_built, *closed])} Run flowedge verify for the whole report."
        )
    measured = _measured_again(bundle, measured)
    _LOG.info("measured %s", "; ".join(f"{one} {one.problem}".rstrip() for one in measured))
    best = preferred(measured)
    others = [] if threads is not None else _with_other_threads(bundle, best)
    chosen = preferred(others) if others else best
    choice = Choice(
        precision=best.precision,
        engine=best.engine,
        measured=tuple(measured),
        not_built=tuple(not_built),
        threads=chosen.threads,
        other_threads=tuple(others),
        reason=_reason(measured, others, engine),
    )
    write_choice(_name_of(bundle, engines, threads), bundle, choice, first_threads)
    return choice


def preferred(measured: Sequence[Measured]) -> Measured:
    """Return the first measurement that no other one beats clearly. fp32 comes before the lower precisions.

    Args:
        measured: The measurements in the order in which they are preferred. At least one has a time.
    """
    right = sorted(
        (one for one in measured if one.median_ms is not None), key=lambda one: one.precision != "fp32"
    )
    fastest = min(one.median_ms or 0.0 for one in right)
    return next(one for one in right if fastest >= CLEARLY * (one.median_ms or 0.0))


def _compared(engine: str | None) -> list[str]:
    """Name the engines to compare: the given one, or all that may be chosen without a name.

    Raises:
        EngineUnavailableError: The given engine is unknown or not installed.
    """
    if engine is None:
        return [spec.name for spec in choosable_engines()]
    engine_module(engine_spec(engine))  # an error names the package to install
    return [engine]


def precisions_on(bundle: Bundle, engine: str) -> tuple[str, ...]:
    """Name the graphs of a bundle that are meant for an engine's device. The INT8 graph is the one for the device."""
    device = engine_spec(engine).device
    other = {"int8-cpu", "int8-gpu"} - {bundle.manifest.precision_on(device, "int8")}
    return tuple(graph.precision for graph in bundle.manifest.graphs if graph.precision not in other)


def _measure(bundle: Bundle, session: Opened) -> Measured:
    """Prove an engine by the self-test, time it where it is right, and close it."""
    engine, precision = session.name, session.precision
    try:
        prove(bundle, session, threads=session.threads)
        return Measured(
            engine=engine,
            precision=precision,
            median_ms=_median_ms(_times_in_turns(bundle, [session], 1)[0]),
            problem="",
            threads=session.threads,
        )
    except EngineUnavailableError as error:
        return _out_of_the_question(engine, precision, error)
    finally:
        session.close()


def _measured_again(bundle: Bundle, measured: list[Measured]) -> list[Measured]:
    """Measure the fastest graphs once more, in turns, so that other work on the machine slows all of them alike."""
    fastest = min(one.median_ms for one in measured if one.median_ms is not None)
    near = [one for one in measured if one.median_ms is not None and one.median_ms <= _NEAR * fastest]
    if len(near) < 2:
        return measured
    known = {(one.engine, one.precision): one for one in _in_turns(bundle, near)}
    return [known.get((one.engine, one.precision), one) for one in measured]


def _with_other_threads(bundle: Bundle, best: Measured) -> list[Measured]:
    """Measure the chosen graph with each number of threads that may be better, in turns with the first number.

    The list begins with the first number. It is empty where no other number may be better.
    """
    cores = find_cores()
    own = cores.threads if best.threads is None else best.threads
    others = [count for count in cores.choices if count != own]
    if engine_spec(best.engine).device != "cpu" or not others:
        return []
    return _in_turns(bundle, [best, *(msgspec.structs.replace(best, threads=count) for count in others)])


def _in_turns(bundle: Bundle, graphs: Sequence[Measured]) -> list[Measured]:
    """Measure graphs in turns. One that cannot be opened or is not right any more is left out, but for the first."""
    with contextlib.ExitStack() as stack:
        sessions: list[Opened] = []
        kept: list[Measured] = []
        for one in graphs:
            try:
                session = open_unproven(one.engine, bundle, one.precision, threads=one.threads)
                stack.callback(session.close)
                prove(bundle, session, threads=session.threads)
            except EngineUnavailableError as error:
                _LOG.info("left out %s with %s threads: %s", one, one.threads, error)
                continue
            sessions.append(session)
            kept.append(one)
        times = _times_in_turns(bundle, sessions, _TURNS)
    return [
        msgspec.structs.replace(one, median_ms=_median_ms(taken))
        for one, taken in zip(kept, times, strict=True)
    ]


def _times_in_turns(bundle: Bundle, sessions: Sequence[Opened], turns: int) -> list[list[float]]:
    """Time engines that are open in turns on one image, and return the milliseconds of each engine's runs."""
    image = GraphInput(bundle.manifest)(read_selftest(bundle).frames[:1])
    for session in sessions:
        window_of(lambda one=session: one.infer(image), _WARM_UP_S)  # type: ignore[misc]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(turns):
        for session, taken in zip(sessions, times, strict=True):
            taken += window_of(lambda one=session: one.infer(image), _MEASURED_S / turns)  # type: ignore[misc]
    return times


def _median_ms(taken: Sequence[float]) -> float:
    return float(np.median(taken))


def _reason(measured: Sequence[Measured], others: Sequence[Measured], engine: str | None) -> str:
    """Return one sentence with the times that decided, and with the precisions that were not measured."""
    right = ", ".join(str(one) for one in measured if one.median_ms is not None)
    parts = [f"the fastest {'here' if engine is None else 'graph on it'} that is right: {right}"]
    if others:
        times = ", ".join(f"{one.threads or 'its own number'} {one.median_ms:.1f} ms" for one in others)
        parts.append(f"by the number of threads: {times}")
    slow = slow_precisions()
    parts += dict.fromkeys(one.problem.rstrip(".") for one in measured if one.problem in slow.values())
    return ". ".join(parts)


def _out_of_the_question(engine: str, precision: str, problem: Exception | str) -> Measured:
    return Measured(engine=engine, precision=precision, median_ms=None, problem=_in_one_line(problem))


def _in_one_line(problem: Exception | str) -> str:
    """Give a message in printable characters and without line breaks."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(problem)).split())


def _name_of(bundle: Bundle, engines: Sequence[str], threads: int | None) -> str:
    """Return the name of a stored choice in the device cache."""
    digest = hashlib.sha256()
    parts = [cpu_name(), *find_nvidia_driver().names, str(threads), str(find_cores())]
    for engine in engines:
        parts += [engine, library_version(engine_spec(engine))]
        parts += [f"{name} {graph_hash(bundle, name)}" for name in precisions_on(bundle, engine)]
    if any(engine_spec(engine).compiled for engine in engines):
        parts += sorted(file.path.name for file in device_cache().files() if file.facts is not None)
    for part in parts:
        digest.update(part.encode() + b"\n")
    return f"precision/{digest.hexdigest()[:32]}.json"
