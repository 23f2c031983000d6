"""Declare the options of commands that speak with a registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from flowedge.runtime.registry.http_client import Connection

CaFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="The certificates to trust in place of the system's."),
]
PlainHttp: TypeAlias = Annotated[
    bool,
    typer.Option("--plain-http", help="Speak without encryption also with servers on other machines."),
]


def connection_of(ca_file: Path | None, plain_http: bool) -> Connection:
    """Return the way to a server that the options name."""
    from flowedge.runtime.registry.http_client import Connection

    return Connection(ca_file=ca_file, plain_http=plain_http)
