"""``flowedge sign`` signs bundles and packs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.output import RESULTS, Json, print_json, table

NAME = "sign"


def command(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE|PACK...", help="The bundles and packs.", show_default=False),
    ],
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            metavar="FILE",
            help="The private key, a PEM file of flowedge keys new or OpenSSL. FLOWEDGE_KEY_PASSWORD is its password.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="DATE", help="The last day on which the signature is accepted, in UTC."
        ),
    ] = None,
    comment: Annotated[
        str, typer.Option("--comment", metavar="TEXT", help="A sentence that is signed as well.")
    ] = "",
    json: Json = False,
) -> None:
    """Sign bundles and packs, so that devices with --require-signature open them.

    Every file is verified first. The signature is over the manifest, which holds the hash of every file. A calibration
    or a change of a threshold makes a new version, which has to be signed again.
    """
    from flowedge.runtime.registry.signing import read_signing_key, sign_folder

    signing = read_signing_key(key)
    statements = [sign_folder(bundle, signing, expires=expires, comment=comment) for bundle in bundles]
    if json:
        print_json(
            {
                "signed": [
                    {"path": str(one), "statement": made}
                    for one, made in zip(bundles, statements, strict=True)
                ]
            }
        )
        return
    rows = table("signed", "kind", "SHA-256", "key", "until")
    for bundle, statement in zip(bundles, statements, strict=True):
        until = statement.expires or "for ever"
        rows.add_row(
            str(bundle),
            statement.kind,
            f"{statement.sha256[:16]}…",
            f"{statement.by} ({statement.key})",
            until,
        )
    RESULTS.print(rows)
    RESULTS.print(
        f"A machine that has {signing.name}.pub opens it with: flowedge verify {shlex.quote(str(bundles[0]))} "
        f"--require-signature {signing.name}.pub",
        soft_wrap=True,
    )
