"""``flowedge pull`` pulls a bundle or a pack from a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.connections import CaFile, PlainHttp, connection_of
from flowedge.cli.output import MESSAGES, RESULTS, Force, Json, print_json
from flowedge.cli.progress import progress_bar

NAME = "pull"


def command(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="The name: oci://HOST/REPOSITORY:TAG, https://..., an address of fsspec, or a folder.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Pull a bundle or a pack, and put it in its place when all of it is there and right.

    With --require-signature, nothing but the manifest is downloaded of what no trusted key has signed. With --force the
    version at the place is replaced in one step, and its files that are the same are not downloaded again. A pull that
    is interrupted changes nothing.
    """
    from flowedge.runtime.registry.transfer import pull

    with progress_bar() as reports:
        done = pull(
            reference,
            output,
            overwrite=force,
            connection=connection_of(ca_file, plain_http),
            reports=reports,
        )
    if json:
        print_json(done)
        return
    kept = f", {done.kept / 1e6:.1f} MB were there already" if done.kept else ""
    RESULTS.print(f"{done.path}: {done.downloaded / 1e6:.1f} MB came{kept}", soft_wrap=True)
    RESULTS.print(f"manifest {done.sha256}")
    if done.signature is not None:
        RESULTS.print(f"signed by {done.signature.key} ({done.signature.key_id})")
    else:
        MESSAGES.print("No signature was checked: name the trusted keys with --require-signature.")
