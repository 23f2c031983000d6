"""Open an engine that may judge parts. The engine is chosen, built on request, and proven on this machine."""

from __future__ import annotations

from dataclasses import replace

from flowedge.bundle import Bundle
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.opening.auto import choose_anew, fastest_precision, precisions_on
from flowedge.runtime.opening.building import build_engine
from flowedge.runtime.opening.engine import AUTO, ENGINES
from flowedge.runtime.opening.engine_contract import Opened
from flowedge.runtime.opening.proof import prove
from flowedge.runtime.opening.unproven import open_unproven


def open_engine(name: str | None, bundle: Bundle, precision: str, *, threads: int | None = None) -> Opened:
    """Load one graph of a bundle on an engine that has proven itself on this machine.

    The first opening of a graph here replays the bundle's self-test, and the device cache stores that it passed, see
    `flowedge.runtime.opening.proof`.

    Args:
        name: A name of ``ENGINES``. Without a name, the first by ``order`` that opens here and is right is taken. The
            ``reason`` then tells why the engines before it were passed over.
        bundle: A verified bundle.
        precision: The precision of the graph. ``int8`` means the INT8 graph for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides, or
            `flowedge.runtime.device.cores` where the process may use only a part of the machine.

    Raises:
        TypeError: ``threads`` is not a whole number.
        ValueError: ``threads`` is below 1.
        EngineUnavailableError: The engine is unknown, not installed, not importable, or cannot run the graph.
        EngineWrongError: The engine's answers to the self-test are wrong here.
        BundleError: There is no graph of this precision, it is not what the manifest says, or the bundle has no
            self-test.
    """
    return open_unproven(
        name,
        bundle,
        precision,
        threads=threads,
        check=lambda engine: prove(bundle, engine, threads=engine.threads),
    )


def open_or_build(
    engine: str | None, bundle: Bundle, precision: str, *, threads: int | None = None, build: bool = False
) -> Opened:
    """Open a proven engine, and compile it first where ``build`` is set and the cache has none that fits.

    Args:
        engine: A name of ``ENGINES``. Without a name, the first that opens here and is right is taken.
        bundle: A verified bundle.
        precision: The precision of the graph. ``auto`` means the fastest graph that is right here, see
            `flowedge.runtime.opening.auto`. Without an engine's name, it is the fastest on all engines.
        threads: The number of CPU threads of one inference. Without a number the engine decides, and ``auto`` measures
            which number is the fastest.
        build: True compiles the named engine first.

    Raises:
        EngineUnavailableError: The cause is one of `open_engine` or `build_engine`, or ``build`` came without an
            engine's name.
        EngineCacheError: The cache cannot be written.
        BundleError: The cause is one of `open_engine`.
    """
    if build and engine is None:
        able = ", ".join(name for name, spec in ENGINES.items() if spec.compiled)
        raise EngineUnavailableError(f"to build an engine, name it: one of {able}.")
    if precision == AUTO:
        if build and engine is not None:
            for each in precisions_on(bundle, engine):
                build_engine(bundle, engine, each)
        return _open_fastest(engine, bundle, threads)
    try:
        return open_engine(engine, bundle, precision, threads=threads)
    except EngineNotBuiltError:
        if not build or engine is None:
            raise
    build_engine(bundle, engine, precision)
    return open_engine(engine, bundle, precision, threads=threads)


def _open_fastest(engine: str | None, bundle: Bundle, threads: int | None) -> Opened:
    """Open the fastest graph that is right here. A stored choice that does not open is measured again."""
    choice = fastest_precision(bundle, engine, threads=threads)
    try:
        opened = open_engine(choice.engine, bundle, choice.precision, threads=choice.threads)
    except EngineUnavailableError:
        choice = choose_anew(bundle, engine, threads=threads)
        opened = open_engine(choice.engine, bundle, choice.precision, threads=choice.threads)
    return replace(opened, reason=". ".join([choice.reason, *choice.not_built]))
