"""``flowedge verify`` checks that a bundle gives the expected answers on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flowedge.bundle import Bundle, open_bundle
from flowedge.bundle_files import pack_around
from flowedge.cli.output import (
    RESULTS,
    EngineName,
    Json,
    OnePrecision,
    Threads,
    print_json,
    table,
)
from flowedge.cli.places import check_bundle, check_file, check_images
from flowedge.cli.precision import print_gate
from flowedge.cli.products import ProductName, folder_of_product
from flowedge.cli.progress import progress_bar
from flowedge.errors import FlowEdgeError
from flowedge.packages import explain_missing
from flowedge.signature import Signature, signature_words

if TYPE_CHECKING:
    from flowedge.calibration.gate_report import GateReport
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.verify import Check

NAME = "verify"


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle, or a pack.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="The checkpoint of the bundle. Its original network in PyTorch is compared with the bundle.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Images to compare on. With --against they are any images. Alone they are good images, and a lower "
            "precision is compared with fp32.",
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            help="The state dict of the feature extractor for --against, as for flowedge export.",
        ),
    ] = None,
    engine: EngineName = None,
    precision: OnePrecision = "fp32",
    threads: Threads = None,
    product: ProductName = None,
    json: Json = False,
) -> None:
    """Replay the self-test of a bundle on this machine.

    The self-test of every product of a pack is replayed, or that of one with --product.

    The exit status is 1 when a check fails.
    """
    if precision == "auto":
        raise FlowEdgeError(
            "verify checks one graph: name its precision. The word auto is for run, eval, bench and build."
        )
    if pack_around(bundle) is not None or product is not None:
        if against is not None or data is not None:
            raise FlowEdgeError(
                "--against and --data are for a bundle, and a pack has the self-tests of its products."
            )
        _verify_products(bundle, product, engine, precision, threads, json=json)
    if data is not None and against is None and precision == "fp32":
        raise FlowEdgeError(
            "--data goes with --against CKPT, or with a lower --precision, which is compared with fp32. The self-test "
            "has its own frames."
        )
    if backbone_weights is not None and against is None:
        raise FlowEdgeError("--backbone-weights goes with --against CKPT: the self-test needs no checkpoint.")
    check_bundle(bundle, against, data)
    check_file(against)
    check_file(backbone_weights)
    check_images(data)
    opened = open_bundle(bundle)
    if against is not None and any(
        one.pruned for one in opened.manifest.graphs if one.precision == precision
    ):
        raise FlowEdgeError(
            f"--against compares a whole network, and the {precision} graph has fewer hidden units than {against}. "
            "Compare it with fp32 on images of good parts: --data GOOD without --against."
        )
    from flowedge.runtime.frames.finding import find_images
    from flowedge.runtime.verify import verify_bundle

    images = None if data is None or against is None else find_images(data).images
    with progress_bar() as reports:
        reports.step("replaying the self-test")
        checks = verify_bundle(opened, engine=engine, precision=precision, threads=threads)
        if against is not None:
            reports.step("importing PyTorch")
            with explain_missing("export"):
                from flowedge.export.checkpoint_parity import compare_with_checkpoint
            checks += compare_with_checkpoint(
                opened,
                against,
                images=images,
                engine=engine,
                precision=precision,
                backbone_weights=backbone_weights,
                threads=threads,
                reports=reports,
            )
    gate = None
    if data is not None and against is None:
        gate = _gate(opened, engine, precision, threads, data)
    passed = all(check.passed for check in checks) and (gate is None or gate.passed)
    if json:
        print_json(
            {
                "bundle": str(bundle),
                "precision": precision,
                "passed": passed,
                "signature": opened.signature,
                "checks": as_rows(checks),
                "gate": gate,
            }
        )
    else:
        if opened.signature is not None:
            _print_signature(bundle, opened.signature)
        print_checks(checks, f"{bundle}, {precision}")
        if gate is not None:
            print_gate(gate, f"{precision} against fp32, {gate.good_images} images of {data}")
    raise typer.Exit(0 if passed else 1)


def _verify_products(
    path: Path, product: str | None, engine: str | None, precision: str, threads: int | None, *, json: bool
) -> NoReturn:
    """Replay the self-tests of the products of a pack, and end the command."""
    around = pack_around(path if product is None else folder_of_product(path, product))
    assert around is not None
    from flowedge.pack import open_pack
    from flowedge.runtime.products import verify_products

    pack, chosen = open_pack(around[0]), around[1]
    names = (chosen,) if chosen else pack.names
    with progress_bar() as reports:
        reports.step("replaying the self-tests")
        found = verify_products(pack, names, engine=engine, precision=precision, threads=threads)
    passed = all(check.passed for checks in found.values() for check in checks)
    if json:
        rows = {name: as_rows(checks) for name, checks in found.items()}
        print_json(
            {
                "pack": str(pack.path),
                "precision": precision,
                "passed": passed,
                "signature": pack.signature,
                "products": rows,
            }
        )
    else:
        if pack.signature is not None:
            _print_signature(pack.path, pack.signature)
        for name, checks in found.items():
            print_checks(checks, f"{pack.path}, {name}, {precision}")
    raise typer.Exit(0 if passed else 1)


def _print_signature(folder: Path, signature: Signature) -> None:
    """Print who vouches for the bundle."""
    RESULTS.print(f"signed {signature_words(folder, signature)}", soft_wrap=True)


def _gate(bundle: Bundle, engine: str | None, precision: str, threads: int | None, data: Path) -> GateReport:
    """Compare a lower precision with fp32 on this machine."""
    from flowedge.calibration.dataset import good_images
    from flowedge.calibration.gate_report import DEFAULT_LIMITS
    from flowedge.calibration.gates import compare
    from flowedge.runtime.detector import Detector
    from flowedge.runtime.opening.unproven import open_unproven

    def detector(name: str) -> Detector:
        session = open_unproven(engine, bundle, name, threads=threads)
        return Detector(bundle, session)

    images = good_images(data)
    limits = DEFAULT_LIMITS[precision.partition("-")[0]]
    with (
        progress_bar() as reports,
        detector("fp32") as fp32,
        detector(precision) as lower,
    ):
        pixel_range = fp32.bundle.manifest.pixel_range
        return compare(fp32, lower, images, 2, limits, reports=reports, pixel_range=pixel_range)


def print_checks(checks: Sequence[Check], title: str) -> None:
    """Print a table of the comparisons."""
    rows = table("check", ">worst relative difference", ">limit", "", title=title)
    for check in checks:
        rows.add_row(
            check.name, f"{check.value:.1e}", f"{check.limit:.0e}", "ok" if check.passed else "FAILED"
        )
    RESULTS.print(rows)


def as_rows(checks: Sequence[Check]) -> list[dict[str, object]]:
    """Return the comparisons as JSON rows."""
    return [{"name": c.name, "value": c.value, "limit": c.limit, "passed": c.passed} for c in checks]
