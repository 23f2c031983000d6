"""``flowedge pack`` puts bundles that share a backbone into one pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowedge.cli.output import RESULTS, Force, Json, print_json, table
from flowedge.cli.places import check_bundle
from flowedge.cli.progress import progress_bar
from flowedge.errors import BundleError
from flowedge.packages import explain_missing
from flowedge.targets import check_pack_target

if TYPE_CHECKING:
    from flowedge.export.pack import PackResult

NAME = "pack"


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE...",
            help="The bundles. The name of a folder without .flowedge becomes the name of the product.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="The folder of the pack, such as line.flowedgepack.", show_default=False
        ),
    ] = ...,  # type: ignore[assignment]
    named: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="NAME=BUNDLE", help="A bundle whose product has another name. May be repeated."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Pack bundles that have the same backbone: one graph of the backbone, and a small head for each product.

    The bundles stay as they are. Each head is compared with its bundle before the pack is written. A precision in which
    the backbones differ is left out, and where the fp32 backbones differ nothing is packed.
    """
    products = _products(bundles or [], named or [])
    for bundle in products.values():
        check_bundle(bundle)
    check_pack_target(output, force=force)
    with explain_missing("calibrate"):
        from flowedge.export.pack import pack_bundles
    with progress_bar() as reports:
        result = pack_bundles(products, output, overwrite=force, reports=reports)
    if json:
        print_json(_json(result))
    else:
        _print(result)


def _products(bundles: list[Path], named: list[str]) -> dict[str, Path]:
    """Name each bundle after its folder or as the user does.

    Raises:
        BundleError: Two bundles have one name, or a word is not NAME=BUNDLE.
    """
    words = [(path.absolute().name.removesuffix(".flowedge"), path) for path in bundles]
    for word in named:
        name, _, folder = word.partition("=")
        if not (name and folder):
            raise BundleError(f"--name takes NAME=BUNDLE, such as bottle=a.flowedge; got {word!r}.")
        words.append((name, Path(folder)))
    products: dict[str, Path] = {}
    for name, path in words:
        if name in products:
            raise BundleError(
                f"{products[name]} and {path} would both be the product {name}. Name one of them otherwise with --name "
                f"NAME={path}."
            )
        products[name] = path
    return products


def _print(result: PackResult) -> None:
    """Print what the pack holds, and how large it is beside its bundles."""
    products = len(result.pack.products)
    rows = table(
        "precision", ">backbone", ">head", ">pack", ">bundles", "answers", title=str(result.pack.path)
    )
    for precision, backbone in result.backbone_bytes.items():
        heads = result.head_bytes[precision]
        difference = result.differences[precision]
        rows.add_row(
            precision,
            f"{backbone / 1e6:.1f} MB",
            f"{heads / products / 1e6:.1f} MB",
            f"{(backbone + heads) / 1e6:.1f} MB",
            f"{(products * backbone + heads) / 1e6:.1f} MB",
            "as the bundles, bit for bit" if difference == 0 else f"differ by {difference:.0e} at most",
        )
    RESULTS.print(rows)
    RESULTS.print(
        f"{products} product{'' if products == 1 else 's'}: {', '.join(result.pack.names)}", soft_wrap=True
    )


def _json(result: PackResult) -> dict[str, object]:
    return {
        "pack": str(result.pack.path),
        "products": result.pack.names,
        "precisions": result.pack.precisions,
        "left_out": dict(result.left_out),
        "differences": dict(result.differences),
        "backbone_bytes": dict(result.backbone_bytes),
        "head_bytes": dict(result.head_bytes),
    }
