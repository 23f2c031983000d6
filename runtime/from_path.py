"""Functions that take the folder of a bundle: load it for inspection, and verify it on this machine."""

from __future__ import annotations

from os import PathLike

from flowedge.bundle import open_bundle
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.opening import open_or_build
from flowedge.runtime.verify import Check, verify_bundle


def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    source_scale: bool = False,
    build: bool = False,
    min_region_px: int = 1,
) -> Detector:
    """Open a bundle and load one of its graphs, ready to inspect frames.

    Args:
        path: The bundle's folder.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graph. ``int8`` means the INT8 graph for the engine's device. ``auto`` means the
            fastest graph that is right here, measured once.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        source_scale: True gives the score and the map that anomalib would give, normalised to 0..1, and decides by
            anomalib's thresholds. These were fitted where the checkpoint was trained.
        build: True compiles the named engine first where the device cache has none that fits, which may take minutes.
            Otherwise nothing is compiled.
        min_region_px: The number of pixels of the frame below which a region is left out of `Result.regions`. Score,
            verdict, map and mask do not depend on it.

    Raises:
        BundleError: The bundle cannot be trusted, or has no graph of this precision. With ``source_scale``, it holds no
            scale of its source or was calibrated to another.
        EngineUnavailableError: The engine cannot run on this machine. The message names the package to install or the
            engine to build.
        EngineWrongError: The engine's answers to the bundle's self-test are wrong on this machine.
        EngineCacheError: The device cache cannot be written, with ``build``.
        TypeError: ``threads`` or ``min_region_px`` is not a whole number.
        ValueError: ``threads`` or ``min_region_px`` is below 1.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> with flowedge.load("bottle.flowedge") as detector:
        ...     result = detector(np.zeros((480, 640, 3), dtype=np.uint8))
        >>> result.anomaly_map.shape
        (480, 640)
    """
    bundle = open_bundle(path)
    opened = open_or_build(engine, bundle, precision, threads=threads, build=build)
    return Detector(bundle, opened, source_scale=source_scale, min_region_px=min_region_px)


def verify(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
) -> tuple[Check, ...]:
    """Replay a bundle's self-test on this machine, and compare the answers with those recorded at export.

    Args:
        path: The bundle's folder.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graph. ``int8`` is the one for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides.

    Returns:
        The comparisons. A bundle is right here when each of them has ``passed``.

    Raises:
        BundleError: The bundle cannot be trusted, or it has no graph of this precision or no self-test.
        EngineUnavailableError: The engine cannot run on this machine.

    Examples:
        >>> import flowedge
        >>> all(check.passed for check in flowedge.verify("bottle.flowedge"))
        True
    """
    return verify_bundle(open_bundle(path), engine=engine, precision=precision, threads=threads)
