"""Declare the option that names the product of a pack."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from flowedge.pack import folder_of_product

__all__ = ["ProductName", "folder_of_product"]

ProductName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--product", metavar="NAME", help="The product of a pack. flowedge info lists a pack's products."
    ),
]
