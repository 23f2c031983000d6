"""Pack bundles that have the same backbone: one graph of the backbone, and a head for each product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from flowedge.bundle import Bundle, check_free, folder_for_next_version, open_bundle
from flowedge.bundle_files import MANIFEST, PACK_INDEX
from flowedge.errors import BundleError, EngineUnavailableError
from flowedge.export.graph.split import Halves, first_difference, split_graph
from flowedge.graph_files import bytes_of_graph, weights_beside
from flowedge.manifest import PrecisionName, Thresholds
from flowedge.onnx_files import save_graph
from flowedge.pack import (
    PRODUCT_NAME,
    SCHEMA,
    Backbone,
    Feature,
    Pack,
    PackIndex,
    backbone_file,
    check_alike,
    head_file,
    product_folder,
    write_pack,
)
from flowedge.progress import SILENT, Reports
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.contract import GraphSource, graph_of_bundle
from flowedge.runtime.opening.engine import ENGINES, JUDGE, engine_module
from flowedge.runtime.opening.engine_contract import Opening
from flowedge.runtime.opening.joined import Joined, type_of_features
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.verify import PARITY_LIMITS
from flowedge.version import __version__

# ONNX Runtime has no bfloat16 on CPUs, so another engine judges those graphs.
_JUDGES: Final = (JUDGE, "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackResult:
    """The pack that was written, and how it compares with the bundles.

    Attributes:
        pack: The pack.
        left_out: By precision, the reason why the pack does not have it.
        differences: By precision, the largest difference of any output from that of the product's own bundle on the
            self-test, relative to the output's largest magnitude. The value 0.0 means equal to the last bit.
        backbone_bytes: By precision, the size of the backbone's graph.
        head_bytes: By precision, the size of all heads together.
    """

    pack: Pack
    left_out: Mapping[str, str]
    differences: Mapping[str, float]
    backbone_bytes: Mapping[str, int]
    head_bytes: Mapping[str, int]


def pack_bundles(
    bundles: Mapping[str, Path],
    target: Path,
    *,
    overwrite: bool = False,
    reports: Reports = SILENT,
) -> PackResult:
    """Write a pack of bundles whose backbones are the same.

    Two backbones are the same where they compute the same from the same input: nodes, attributes and weights, whatever
    their names. A precision that some bundle lacks, or in which the backbones differ, is left out. INT8 backbones
    differ where each bundle was calibrated on images of its own. Each head is compared on the self-test of its bundle
    with the graph that it was cut from, before anything is written.

    Args:
        bundles: By the product's name, the bundle's folder.
        target: The folder to make.
        overwrite: Replace ``target`` where it is a pack already.
        reports: Told of each step, of each precision that is left out, and of a product without thresholds.

    Raises:
        BundleError: A bundle cannot be trusted or cut, a name is none that a product may have, the bundles differ in
            preprocessing or in the fp32 backbone, a half does not give the answers of the bundle, or the pack cannot
            be written. Nothing is then left behind.
        EngineUnavailableError: ONNX Runtime is not there to compare the halves with the bundles.
    """
    check_names(bundles)
    check_free(target, "a pack", PACK_INDEX, overwrite=overwrite)
    opened = {name: open_bundle(path) for name, path in bundles.items()}
    check_alike(target, {name: bundle.manifest for name, bundle in opened.items()})
    for name, bundle in opened.items():
        if all(graph.thresholds == Thresholds() for graph in bundle.manifest.graphs):
            reports.note(
                f"the product {name} has no threshold, so its verdicts are unknown. Calibrate {bundle.path}, and pack "
                "again."
            )
    names: dict[PrecisionName, None] = {}
    for bundle in opened.values():
        for graph in bundle.manifest.graphs:
            names[graph.precision] = None
    packed: list[_Packed] = []
    left_out: dict[str, str] = {}
    with folder_for_next_version(target) as draft:
        features: tuple[Feature, ...] | None = None
        for precision in names:
            try:
                one = _packed(opened, precision, features, draft, reports)
            except _LeftOutError as reason:
                if precision == "fp32":
                    raise BundleError(
                        f"the bundles cannot share a backbone: {reason}. Pack those together whose networks were "
                        "exported with the same backbone and the same weights of it."
                    ) from reason
                left_out[precision] = str(reason)
                reports.note(f"{precision} is left out: {reason}")
            else:
                packed.append(one)
                features = one.backbone.features
        if not packed:
            reasons = "; ".join(f"{precision}: {reason}" for precision, reason in left_out.items())
            raise BundleError(f"the bundles have no precision in common: {reasons}. Export them alike.")
        reports.step("writing the pack")
        index = PackIndex(
            schema=SCHEMA,
            flowedge_version=__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            backbones=tuple(one.backbone for one in packed),
            products=tuple(opened),
        )
        pack = write_pack(target, index, _files(opened, packed, draft), overwrite=overwrite)
    return PackResult(
        pack=pack,
        left_out=MappingProxyType(left_out),
        differences=MappingProxyType({one.backbone.precision: one.difference for one in packed}),
        backbone_bytes=MappingProxyType({one.backbone.precision: one.backbone_bytes for one in packed}),
        head_bytes=MappingProxyType({one.backbone.precision: one.head_bytes for one in packed}),
    )


def check_names(names: Mapping[str, object]) -> None:
    """Check that products may have these names.

    Raises:
        BundleError: There is no name, or one is too long, or has other characters than letters, digits, ``.``, ``_``
            and ``-``, or differs from another in capitals alone.
    """
    if not names:
        raise BundleError("a pack needs at least one bundle.")
    for name in names:
        if not PRODUCT_NAME.fullmatch(name):
            raise BundleError(
                f"{name!r} is no name of a product: a name has at most 100 letters, digits, '.', '_' and '-', and does "
                "not begin with a dot. Name the product with --name NAME=BUNDLE."
            )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise BundleError(
                f"the names {other} and {name} differ in capitals only, which some file systems do not tell apart. "
                "Name one of them otherwise with --name NAME=BUNDLE."
            )


class _LeftOutError(Exception):
    """The reason why a precision does not go into the pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """The graphs of one precision in the draft."""

    backbone: Backbone
    difference: float
    backbone_bytes: int
    head_bytes: int


def _packed(
    bundles: Mapping[str, Bundle],
    precision: PrecisionName,
    features: tuple[Feature, ...] | None,
    draft: Path,
    reports: Reports,
) -> _Packed:
    """Cut the graphs of one precision, compare their backbones, and write and check all halves."""
    lacking = [
        name
        for name, bundle in bundles.items()
        if precision not in {graph.precision for graph in bundle.manifest.graphs}
    ]
    if lacking:
        raise _LeftOutError(f"there is no such graph of {', '.join(lacking)}")
    reports.step(f"{precision}: comparing backbones", len(bundles))
    first_name = next(iter(bundles))
    first: Halves | None = None
    for name, bundle in bundles.items():
        halves = split_graph(bundle.graph_path(precision), features)
        if first is None:
            first = halves
            _save(halves, draft, name, precision, with_backbone=True)
        else:
            different = first_difference(first, halves)
            if different:
                raise _LeftOutError(
                    f"the {precision} backbones of {first_name} and {name} differ, first in {different}"
                )
            _save(halves, draft, name, precision, with_backbone=False)
        reports.advance()
    assert first is not None
    reports.step(f"{precision}: comparing each half with its bundle", len(bundles))
    difference = 0.0
    for name, bundle in bundles.items():
        difference = max(difference, _difference(bundle, name, precision, first.features, draft))
        reports.advance()
    return _Packed(
        backbone=Backbone(precision=precision, digest=first.digest, features=first.features),
        difference=difference,
        backbone_bytes=bytes_of_graph(_place(draft, backbone_file(precision))),
        head_bytes=sum(bytes_of_graph(_place(draft, head_file(name, precision))) for name in bundles),
    )


def _save(halves: Halves, draft: Path, name: str, precision: str, *, with_backbone: bool) -> None:
    """Write the halves into the draft, and check that they are valid graphs."""
    head = _place(draft, head_file(name, precision))
    head.parent.mkdir(parents=True, exist_ok=True)
    save_graph(halves.head, head)
    if with_backbone:
        save_graph(halves.backbone, _place(draft, backbone_file(precision)))


def _place(draft: Path, file: str) -> Path:
    return draft / "graphs" / file


def _difference(
    bundle: Bundle, name: str, precision: str, features: tuple[Feature, ...], draft: Path
) -> float:
    """Compare the halves with the graph that they were cut from, on the frames of the self-test.

    Returns:
        The largest difference of an output, relative to its largest magnitude.

    Raises:
        BundleError: The difference is larger than the limit of the precision.
        _LeftOutError: No engine here runs this precision.
    """
    images = GraphInput(bundle.manifest)(read_selftest(bundle).frames)
    whole = graph_of_bundle(bundle, precision)
    between = type_of_features(features)

    def half(file: str, *, is_head: bool) -> GraphSource:
        return GraphSource(
            file=_place(draft, file),
            sha256="",
            owner=draft,
            precision=precision,
            inputs=between if is_head else whole.inputs,
            outputs=whole.outputs if is_head else between,
        )

    sources = (
        whole,
        half(backbone_file(precision), is_head=False),
        half(head_file(name, precision), is_head=True),
    )
    problems: list[str] = []
    for judge in _JUDGES:
        spec = ENGINES[judge]
        try:
            module = engine_module(spec)
            engine, backbone, head = (
                module.load(Opening(spec=spec, source=source, threads=None)) for source in sources
            )
        except EngineUnavailableError as error:
            if precision == "fp32" and judge == JUDGE:
                raise
            problems.append(str(error))
            continue
        joined = Joined(backbone, head, len(features))
        try:
            expected, got = engine.infer(images), joined.infer(images)
        finally:
            engine.close()
            backbone.close()
            head.close()
        difference = max(_relative(got[output], expected[output]) for output in expected)
        if not difference <= PARITY_LIMITS[precision]:
            raise BundleError(
                f"the halves of {bundle.path}, {precision}, differ from the bundle by {difference:.1e} on {judge}, "
                f"and the limit is {PARITY_LIMITS[precision]:.0e}. Nothing was packed. Check the engine with: flowedge "
                f"verify {bundle.path} --engine {judge} --precision {precision}"
            )
        return difference
    raise _LeftOutError(f"no engine here can compare its graphs with the bundles: {' '.join(problems)}")


def _relative(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest magnitude, which is 0 for equal arrays, NaN included."""
    if np.array_equal(got, expected, equal_nan=True):
        return 0.0
    scale = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max() / scale)


def _files(bundles: Mapping[str, Bundle], packed: list[_Packed], draft: Path) -> dict[str, Path | bytes]:
    """Collect the files of the pack: the graphs of the draft, and the bundles without theirs."""
    precisions = [one.backbone.precision for one in packed]
    files: dict[str, Path | bytes] = {}

    def add_graph(path: str) -> None:
        place = _place(draft, path)
        files[path] = place
        if weights_beside(place).exists():
            files[weights_beside(Path(path)).as_posix()] = weights_beside(place)

    for precision in precisions:
        add_graph(backbone_file(precision))
    for name, bundle in bundles.items():
        folder = product_folder(name)
        files[f"{folder}/{MANIFEST}"] = bundle.path / MANIFEST
        graphs = tuple(graph.file for graph in bundle.manifest.graphs)
        for stored in bundle.manifest.files:
            if not stored.path.startswith(graphs):
                files[f"{folder}/{stored.path}"] = bundle.read(stored.path)
        for precision in precisions:
            add_graph(head_file(name, precision))
    return files
