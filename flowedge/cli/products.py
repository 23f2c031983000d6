"""Find the product of a pack that a command is about, and show packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from flowedge.bundle_files import pack_around
from flowedge.errors import BundleError
from flowedge.pack import product_folder, read_index

ProductName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--product", metavar="NAME", help="The product of a pack. flowedge info lists a pack's products."
    ),
]


def folder_of_product(path: Path, product: str | None) -> Path:
    """Return the folder of one product in a pack, and the folder of a bundle as it is.

    Raises:
        BundleError: The folder is a pack and no product of it was named, or it is none and a product was named.
    """
    around = pack_around(path)
    if around is None or around[1]:
        if product is not None:
            raise BundleError(f"{path} is not a pack, and --product names a product of a pack. Leave it out.")
        return path
    names = read_index(path).products
    if product not in names:
        problem = "is a pack" if product is None else f"has no product {product!r}"
        raise BundleError(f"{path} {problem}. Name one with --product: {', '.join(names)}.")
    return path / product_folder(product)
