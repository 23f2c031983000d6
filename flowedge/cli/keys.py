"""``flowedge keys`` makes keys for signatures, and lists those that a machine trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowedge.cli.group import new_group
from flowedge.cli.output import RESULTS, Json, print_json, table

app = new_group("keys", help="Make a key for signatures, or list the keys that a machine trusts.")


@app.command("new")
def new(
    name: Annotated[
        str, typer.Argument(help="The name of the key, such as release-2027.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of both files.")
    ] = Path("."),
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="DATE", help="The last day on which the key is accepted, in UTC."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a key pair: NAME.key stays with the signer, and NAME.pub goes to every machine that is to trust it.

    The private key is encrypted with the value of FLOWEDGE_KEY_PASSWORD where this environment variable is set.
    """
    from flowedge.runtime.registry.signing import PASSWORD, new_key
    from flowedge.trusted_keys import read_keys

    private, public = new_key(output, name, expires=expires)
    (key,) = read_keys(public).keys
    if json:
        print_json({"private": str(private), "public": str(public), "id": key.id, "expires": key.expires})
        return
    import os

    how = "encrypted" if os.environ.get(PASSWORD) else f"not encrypted, since {PASSWORD} is not set"
    RESULTS.print(
        f"{private}: the private key, {how}. Keep it where only the signer reads it.", soft_wrap=True
    )
    RESULTS.print(
        f"{public}: the public key {key.name} ({key.id}). Give it to the machines that are to trust it.",
        soft_wrap=True,
    )


@app.command("show")
def show(
    keys: Annotated[
        Path, typer.Argument(metavar="KEYS", help="A file or a folder of public keys.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """List the keys of a file or a folder, as --require-signature reads them."""
    from flowedge.clock import utc_now
    from flowedge.trusted_keys import read_keys

    trusted = read_keys(keys)
    now = utc_now()
    rows = table("key", "id", "signs", "until", "state")
    listed = []
    for key in trusted.keys:
        problem = next(filter(None, (key.problem(subject, now) for subject in key.signs)), "")
        until = None if key.expires is None else key.expires.isoformat()
        listed.append(
            {"name": key.name, "id": key.id, "signs": key.signs, "expires": until, "problem": problem}
        )
        rows.add_row(key.name, key.id, ", ".join(key.signs), until or "for ever", problem or "trusted")
    if json:
        print_json({"keys": listed})
    else:
        RESULTS.print(rows)
