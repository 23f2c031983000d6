"""Compiling an engine for this machine, ahead of the first image: nothing is built unless it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flowedge.bundle import Bundle
from flowedge.errors import EngineNotBuiltError, EngineUnavailableError
from flowedge.runtime.engine import AUTO, ENGINES, Engine, Opening, engine_module, engine_spec, open_engine
from flowedge.runtime.engine_cache import CachedFile, EngineCache, EngineFacts, engine_cache

DEFAULT_BATCHES: Final = (1, 1, 8)


def _silent(_: str) -> None:
    pass


def _unseen(_phase: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What may be asked of a builder.

    Attributes:
        batches: The smallest, usual and largest number of images of a run; equal numbers fix it.
        dla: Run what it can of the backbone on a Jetson's deep learning accelerator.
        capabilities: TensorRT for RTX: the compute capabilities to build for, such as 8.9; empty for all that an engine
            fits by itself, from Ampere on.
    """

    batches: tuple[int, int, int] = DEFAULT_BATCHES
    dla: bool = False
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """What an engine's file is to build.

    Attributes:
        opening: The graph and the engine.
        options: What was asked for.
        cache: Where it goes.
        say: Told what happens, in sentences.
        on_progress: Told how far it is: the phase by its own name, and how many of all steps are done.
    """

    opening: Opening
    options: BuildOptions
    cache: EngineCache
    say: Callable[[str], None]
    on_progress: Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine in the cache.

    Attributes:
        file: Where it is, and what it was built from.
        was_built: Just now; False where the cache had it.
        seconds: How long it took.
        notes: What is worth knowing about it, such as what does not run on the accelerator.
    """

    file: CachedFile
    was_built: bool
    seconds: float
    notes: tuple[str, ...] = ()


def build_engine(
    bundle: Bundle,
    engine: str,
    precision: str = "fp32",
    *,
    options: BuildOptions | None = None,
    say: Callable[[str], None] = _silent,
    on_progress: Callable[[str, int, int], None] = _unseen,
) -> Built:
    """Compile one graph of a bundle for this machine, unless the cache has it already.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES`` that is compiled ahead.
        precision: Which of its graphs.
        options: What to ask of the builder.
        say: Told what happens.
        on_progress: Told how far it is: the phase, and how many of all steps are done.

    Raises:
        ValueError: The batch sizes are not in ascending order from 1.
        EngineUnavailableError: The engine is not installed, is not compiled ahead, needs a device that is not here,
            or cannot build the graph; the message holds all that its parser says.
        EngineCacheError: The cache cannot be written.
        BundleError: There is no graph of this precision.
    """
    options = options or BuildOptions()
    smallest, usual, largest = options.batches
    if not 1 <= smallest <= usual <= largest:
        raise ValueError(f"the batch sizes must be min <= opt <= max, from 1 on, got {options.batches}")
    spec = engine_spec(engine)
    if not spec.compiled:
        able = ", ".join(name for name, other in ENGINES.items() if other.compiled)
        raise EngineUnavailableError(
            f"{engine} runs the bundle's graph as it is: there is nothing to build. Built are {able}."
        )
    exact = bundle.manifest.precision_on(spec.device, precision)
    bundle.manifest.graph(exact)
    opening = Opening(spec=spec, bundle=bundle, precision=exact, threads=None)
    building = Building(
        opening=opening, options=options, cache=engine_cache(), say=say, on_progress=on_progress
    )
    return engine_module(spec).build(building)


def open_or_build(
    engine: str | None, bundle: Bundle, precision: str, *, threads: int | None = None, build: bool = False
) -> Engine:
    """As ``open_engine``; with ``build``, the named engine is compiled first where the cache has none that fits.

    The precision may be ``auto``: the fastest that is right here, on any engine where none is named; see
    `flowedge.runtime.auto`.

    Raises:
        EngineUnavailableError: As ``open_engine`` and ``build_engine``; or ``build`` without an engine's name.
        EngineCacheError: The cache cannot be written.
        BundleError: As ``open_engine``.
    """
    if build and engine is None:
        able = ", ".join(name for name, spec in ENGINES.items() if spec.compiled)
        raise EngineUnavailableError(f"to build an engine, name it: one of {able}.")
    if precision == AUTO:
        from flowedge.runtime.auto import fastest_precision, precisions_on

        if build and engine is not None:
            for each in precisions_on(bundle, engine):
                build_engine(bundle, engine, each)
        choice = fastest_precision(bundle, engine, threads=threads)
        session = open_engine(choice.engine, bundle, choice.precision, threads=threads)
        right = ", ".join(str(one) for one in choice.measured if one.median_ms is not None)
        session.reason = ". ".join(
            [
                f"the fastest {'here' if engine is None else 'graph on it'} that is right: {right}",
                *choice.not_built,
            ]
        )
        return session
    try:
        return open_engine(engine, bundle, precision, threads=threads)
    except EngineNotBuiltError:
        if not build or engine is None:
            raise
    build_engine(bundle, engine, precision)
    return open_engine(engine, bundle, precision, threads=threads)


def built_in_cache(
    building: Building, facts: EngineFacts, compile_it: Callable[[], bytes], notes: list[str]
) -> Built:
    """Take the engine of these facts from the cache, or compile and store it; ``notes`` are read at the end."""
    begun = time.monotonic()
    found, was_built = building.cache.find_or_build(facts, compile_it, say=building.say)
    file = CachedFile(path=found.path, facts=facts, size=found.path.stat().st_size, used=time.time())
    return Built(file=file, was_built=was_built, seconds=time.monotonic() - begun, notes=tuple(notes))
