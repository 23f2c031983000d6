"""``flowedge push`` pushes a bundle or a pack to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.bundle_files import pack_around
from flowedge.cli.connections import CaFile, PlainHttp, connection_of
from flowedge.cli.output import MESSAGES, RESULTS, Force, Json, print_json
from flowedge.cli.places import check_bundle

NAME = "push"


def command(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE|PACK", help="The bundle or the pack.", show_default=False)
    ],
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="The name: oci://HOST/REPOSITORY:TAG, an address of fsspec such as s3://BUCKET/NAME, or a folder.",
            show_default=False,
        ),
    ],
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Push a bundle or a pack to an OCI registry, an object store or a shared folder.

    All files are verified first. The signature goes along. The manifest is written last, so that an interrupted push
    leaves nothing that can be pulled. The passwords are those of docker login.
    """
    if pack_around(bundle) is None:
        check_bundle(bundle)
    from flowedge.runtime.registry.transfer import push

    done = push(bundle, reference, overwrite=force, connection=connection_of(ca_file, plain_http))
    if json:
        print_json(done)
        return
    RESULTS.print(f"{done.reference}: {done.size / 1e6:.1f} MB in {done.files} files", soft_wrap=True)
    RESULTS.print(f"manifest {done.sha256}")
    if not done.is_signed:
        MESSAGES.print(
            "It is not signed, so no machine with --require-signature opens it: run flowedge sign first.",
            soft_wrap=True,
        )
