"""Functions that take the folder of a bundle: load it for inspection, and verify it on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from flowedge.bundle import open_bundle
from flowedge.bundle_files import pack_around
from flowedge.errors import BundleError
from flowedge.pack import Pack, open_pack
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.joined import open_product, open_products, separate
from flowedge.runtime.opening.opening import open_or_build
from flowedge.runtime.products import ProductLine, names_of, verify_products
from flowedge.runtime.verify import Check, verify_bundle
from flowedge.signature import Required


def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    source_scale: bool = False,
    build: bool = False,
    min_region_px: int = 1,
    levels: bool = True,
    require_signature: Required = None,
) -> Detector | Any:
    """Open a bundle or a pack and load graphs of one precision, ready to inspect frames.

    Args:
        path: The folder of a bundle, of a pack, or of one product in a pack (``line.flowedgepack/products/bottle``).
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
        levels: False leaves `Result.levels` empty, so that a GPU copies back only what decides. A `ProductLine` always
            has them.
        require_signature: A file or a folder of trusted public keys, one of which must have signed this folder. By
            default it is the one that the environment variable ``FLOWEDGE_REQUIRE_SIGNATURE`` names, if it is set.
            False needs no signature.

    Returns:
        A `Detector` for a bundle or a product, and a `ProductLine` for a pack. Programs that check types open a pack
        with `load_pack`.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
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
    folder = Path(path)
    if (around := pack_around(folder)) is not None:
        pack, product = open_pack(around[0], require_signature=require_signature), around[1]
        if build:
            raise BundleError(
                f"{pack.path} is a pack, and build is for bundles. Take an engine that needs no build."
            )
        if not product:
            return _line(pack, pack.names, engine, precision, threads, source_scale, min_region_px)
        opened = open_product(pack, product, engine, precision, threads=threads)
        bundle = pack.product(product)
        return Detector(bundle, opened, source_scale=source_scale, min_region_px=min_region_px, levels=levels)
    bundle = open_bundle(path, require_signature=require_signature)
    opened = open_or_build(engine, bundle, precision, threads=threads, build=build)
    return Detector(bundle, opened, source_scale=source_scale, min_region_px=min_region_px, levels=levels)


def load_detectors(
    paths: Sequence[Path],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    min_region_px: int = 1,
    levels: bool = True,
    require_signature: Required = None,
) -> list[Detector]:
    """Open several bundles on one engine. Those that are products of one pack share its backbone.

    Each detector is closed by itself. The last one of a pack that is closed frees the backbone.

    Args:
        paths: The folders of bundles, and of products in packs.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graphs. ``int8`` means the INT8 graphs for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        min_region_px: The number of pixels of the frame below which a region is left out of `Result.regions`.
        levels: False leaves `Result.levels` empty, so that a GPU copies back only what decides.
        require_signature: The trusted keys, as `load` takes them.

    Returns:
        One detector for each path, in order.

    Raises:
        BundleError: A path names a pack without a product, or the cause is one of `load`.
        EngineUnavailableError: The engine cannot run on this machine.
        EngineWrongError: The engine's answers to a self-test are wrong on this machine.
    """
    alone: list[int] = []
    of_packs: dict[Path, dict[str, int]] = {}
    for place, path in enumerate(paths):
        pack_path, product = pack_around(path) or (None, "")
        if pack_path is not None and not product:
            raise BundleError(f"{path} is a pack. Name one of its products, such as {path}/products/NAME.")
        if pack_path is None or product in of_packs.setdefault(pack_path, {}):
            alone.append(place)
        else:
            of_packs[pack_path][product] = place
    found: dict[int, Detector] = {}
    try:
        for place in alone:
            found[place] = load(
                paths[place],
                engine=engine,
                precision=precision,
                threads=threads,
                min_region_px=min_region_px,
                levels=levels,
                require_signature=require_signature,
            )
        for pack_path, places in of_packs.items():
            pack = open_pack(pack_path, require_signature=require_signature)
            engines = separate(open_products(pack, list(places), engine, precision, threads=threads))
            for product, place in places.items():
                found[place] = Detector(
                    pack.product(product), engines[product], min_region_px=min_region_px, levels=levels
                )
    except BaseException:
        for detector in found.values():
            detector.close()
        raise
    return [found[place] for place in range(len(paths))]


def load_pack(
    path: str | PathLike[str],
    *,
    products: str | Sequence[str] | None = None,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    source_scale: bool = False,
    min_region_px: int = 1,
    require_signature: Required = None,
) -> ProductLine:
    """Open a pack and load its backbone once and a head for each product, ready to inspect frames.

    Args:
        path: The pack's folder.
        products: The name or the names of the products to load. Without names, all products are loaded.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graphs. ``int8`` means the INT8 graphs for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        source_scale: True gives the score and the map that anomalib would give, and decides by anomalib's thresholds.
        min_region_px: The number of pixels of the frame below which a region is left out of `Result.regions`.
        require_signature: A file or a folder of trusted public keys, one of which must have signed this folder. By
            default it is the one that the environment variable ``FLOWEDGE_REQUIRE_SIGNATURE`` names, if it is set.
            False needs no signature.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        BundleError: The pack cannot be trusted, or has no such product or precision.
        EngineUnavailableError: The engine cannot run on this machine.
        EngineWrongError: The engine's answers to the self-test of a product are wrong on this machine.
        ValueError: ``products`` names none, or ``threads`` is below 1.

    Examples:
        >>> import numpy as np
        >>> import flowedge
        >>> with flowedge.load_pack("line.flowedgepack") as line:
        ...     results = line.detect_products(np.zeros((480, 640, 3), dtype=np.uint8))
        >>> sorted(results) == sorted(line.products)
        True
    """
    pack = open_pack(path, require_signature=require_signature)
    names = pack.names if products is None else names_of(products)
    if not names:
        raise ValueError(f"no product was named. The pack has: {', '.join(pack.names)}.")
    return _line(pack, names, engine, precision, threads, source_scale, min_region_px)


def _line(
    pack: Pack,
    products: Sequence[str],
    engine: str | None,
    precision: str,
    threads: int | None,
    source_scale: bool,
    min_region_px: int,
) -> ProductLine:
    engines = open_products(pack, products, engine, precision, threads=threads)
    return ProductLine(pack, engines, source_scale=source_scale, min_region_px=min_region_px)


def verify(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    require_signature: Required = None,
) -> tuple[Check, ...]:
    """Replay a bundle's self-test on this machine, and compare the answers with those recorded at export.

    Args:
        path: The folder of a bundle, of a pack, whose products are all verified, or of one product in a pack.
        engine: A name of ``flowedge.runtime.ENGINES``. Without a name, the first that opens on this machine is taken.
        precision: The precision of the graph. ``int8`` is the one for the engine's device.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        require_signature: A file or a folder of trusted public keys, one of which must have signed this folder. By
            default it is the one that the environment variable ``FLOWEDGE_REQUIRE_SIGNATURE`` names, if it is set.
            False needs no signature.

    Returns:
        The comparisons. A bundle is right here when each of them has ``passed``.

    Raises:
        SignatureError: A signature is required, and there is none that is accepted.
        BundleError: The bundle cannot be trusted, or it has no graph of this precision or no self-test.
        EngineUnavailableError: The engine cannot run on this machine.

    Examples:
        >>> import flowedge
        >>> all(check.passed for check in flowedge.verify("bottle.flowedge"))
        True
    """
    folder = Path(path)
    if (around := pack_around(folder)) is not None:
        pack, product = open_pack(around[0], require_signature=require_signature), around[1]
        names = (product,) if product else pack.names
        found = verify_products(pack, names, engine=engine, precision=precision, threads=threads)
        return tuple(
            replace(check, name=f"{name}: {check.name}") for name, checks in found.items() for check in checks
        )
    bundle = open_bundle(path, require_signature=require_signature)
    return verify_bundle(bundle, engine=engine, precision=precision, threads=threads)
