"""FlowEdge: normalizing-flow anomaly detectors, from a checkpoint to an inspection line."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from flowedge import clock, telemetry
from flowedge.version import __version__

if TYPE_CHECKING:
    from flowedge.runtime.detector import Detector

__all__ = ["__version__", "load"]

# Here, where every program that opens a library of ours comes by first.
telemetry.switch_off()
clock.bear_late_clock()


def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    source_scale: bool = False,
    build: bool = False,
) -> Detector:
    """Open a bundle and load one of its graphs, ready to inspect frames.

    Args:
        path: The bundle's folder.
        engine: A name of ``flowedge.runtime.ENGINES``; None takes the first that opens on this machine.
        precision: Which of the bundle's graphs to run; ``int8`` is the one for the engine's device, ``auto`` the
            fastest that is right here, measured once.
        threads: How many CPU threads one inference uses; None leaves it to the engine.
        source_scale: Give the score and the map that anomalib would give, normalised to 0..1, and decide by its
            thresholds; they were fitted where the checkpoint was trained.
        build: Compile the named engine first where the engine cache has none that fits; it may take minutes. Without
            it nothing is ever compiled here.

    Raises:
        BundleError: The bundle cannot be trusted, or has no graph of this precision; or it holds no
            scale of its source, or was calibrated to another.
        EngineUnavailableError: The engine cannot run on this machine; the message says what to install or to build.
        EngineWrongError: The engine's answers to the bundle's self-test are wrong on this machine.
        EngineCacheError: ``build``, and the engine cache cannot be written.
        TypeError: ``threads`` is not a whole number.
        ValueError: ``threads`` is below 1.
    """
    from flowedge.bundle import open_bundle
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.opening import open_or_build

    bundle = open_bundle(path)
    session = open_or_build(engine, bundle, precision, threads=threads, build=build)
    return Detector(bundle, session, session.precision, source_scale=source_scale)
