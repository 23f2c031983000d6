"""Compile engines for this machine, when a user asks for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from flowedge.bundle import Bundle
from flowedge.errors import EngineUnavailableError
from flowedge.progress import SILENT, Reports
from flowedge.runtime.device.device_cache import CachedFile, device_cache
from flowedge.runtime.device.engine_file import EngineFacts
from flowedge.runtime.opening.contract import graph_of_bundle
from flowedge.runtime.opening.engine import ENGINES, engine_module, engine_spec
from flowedge.runtime.opening.engine_contract import Building, BuildOptions, Built, Opening

_LOG: Final = logging.getLogger(__name__)


def build_engine(
    bundle: Bundle,
    engine: str,
    precision: str = "fp32",
    *,
    options: BuildOptions | None = None,
    reports: Reports = SILENT,
) -> Built:
    """Compile one graph of a bundle for this machine, unless the cache has it already.

    Args:
        bundle: A verified bundle.
        engine: A name of ``ENGINES`` that is compiled ahead.
        precision: The precision of the graph.
        options: The options of the builder.
        reports: Told of each step and of events.

    Raises:
        ValueError: The batch sizes are not in ascending order from 1.
        EngineUnavailableError: The engine is not installed, is not compiled ahead, needs a device that is not here,
            or cannot build the graph. The message holds everything that its parser printed.
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
    opening = Opening(spec=spec, source=graph_of_bundle(bundle, exact), threads=None)
    building = Building(opening=opening, options=options, cache=device_cache(), reports=reports)
    return engine_module(spec).build(building)


def built_in_cache(
    building: Building, facts: EngineFacts, compile_it: Callable[[], bytes], notes: list[str]
) -> Built:
    """Take the engine of these facts from the cache, or compile and store it. Compiling may add to ``notes``."""
    begun = time.monotonic()
    found, was_built = building.cache.find_or_build(facts, compile_it, reports=building.reports)
    _LOG.info("%s %s, %.1f s", "built" if was_built else "took", found.path, time.monotonic() - begun)
    file = CachedFile(path=found.path, facts=facts, size=found.path.stat().st_size, used=time.time())
    return Built(file=file, was_built=was_built, seconds=time.monotonic() - begun, notes=tuple(notes))
