"""``flowedge rollout`` writes and checks the signed file that names the version of a bundle for each station."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from flowedge.cli.connections import CaFile, PlainHttp, connection_of
from flowedge.cli.group import new_group
from flowedge.cli.output import MESSAGES, RESULTS, Json, print_json, table
from flowedge.errors import RegistryError

if TYPE_CHECKING:
    from flowedge.runtime.registry.http_client import Connection
    from flowedge.runtime.registry.rollout import Rollout
    from flowedge.runtime.registry.signing import SigningKey

app = new_group("rollout", help="Say in a signed file which version of a bundle which stations run.")

_File: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FILE|REFERENCE",
        help="The rollout file: a path, oci://HOST/REPOSITORY:TAG, or an address of fsspec.",
        show_default=False,
    ),
]
_Key: TypeAlias = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The private key that signs.", show_default=False)
]
_Days: TypeAlias = Annotated[
    float,
    typer.Option("--days", min=0.01, max=3650, help="The days until the file expires and has to be renewed."),
]
_Keys: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="KEYS",
        help="The public keys that may have signed the version before, if it was not the same key.",
    ),
]


@app.command("set")
def set_(
    file: _File,
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help="The reference of the bundle, as flowedge push printed it.",
            show_default=False,
        ),
    ],
    key: _Key = ...,  # type: ignore[assignment]
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason.", show_default=False)] = ...,  # type: ignore[assignment]
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="NAME", help="The person who decided it, by default the user."),
    ] = None,
    station: Annotated[
        list[str] | None,
        typer.Option(
            "--station", metavar="NAME", help="A station, or a pattern such as 'line-3-*'. May be repeated."
        ),
    ] = None,
    ring: Annotated[
        list[str] | None,
        typer.Option("--ring", metavar="NAME", help="A ring of stations, such as canary. May be repeated."),
    ] = None,
    product: Annotated[
        str, typer.Option("--product", metavar="NAME", help="The product of a station of several products.")
    ] = "",
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="MOMENT", help="The moment from which on it runs, in ISO 8601. By default now."
        ),
    ] = None,
    days: _Days = 14,
    name: Annotated[str, typer.Option("--name", help="The name of a new file's rollout.")] = "rollout",
    keys: _Keys = None,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Let stations run a version of a bundle, from now or from a moment on.

    Without --station and --ring it is for all stations. The bundle must be in the registry already. The version that
    runs is fixed by its SHA-256, so that a name that moves changes nothing. To go back, set the older version again.
    """
    from flowedge.runtime.registry.rollout import Stage, beginning, next_rollout
    from flowedge.runtime.registry.signing import read_signing_key
    from flowedge.runtime.registry.transfer import version_of
    from flowedge.text import printable

    signing = read_signing_key(key)
    connection = connection_of(ca_file, plain_http)
    before = _before(file, signing, keys, connection)
    pinned, sha256, is_signed = version_of(bundle, connection=connection)
    if not is_signed:
        raise RegistryError(
            f"{printable(bundle)} is not signed, and stations take no such bundle. Sign it with flowedge "
            "sign BUNDLE --key FILE, push it, and set the rollout again."
        )
    local = "://" not in pinned
    stage = Stage(
        bundle=os.path.abspath(pinned) if local else pinned,
        sha256=sha256,
        product=product,
        stations=tuple(station or ()),
        rings=tuple(ring or ()),
        since=beginning(since).isoformat(),
        by=printable(by or getpass.getuser()),
        why=printable(why),
    )
    rollout, content = next_rollout(before, signing, stage=stage, name=name, days=days)
    _finish(file, rollout, content, connection, json=json)


@app.command("renew")
def renew(
    file: _File,
    key: _Key = ...,  # type: ignore[assignment]
    days: _Days = 14,
    keys: _Keys = None,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Sign a rollout file again with a later expiry. Stations follow no expired file, and go on as they are."""
    from flowedge.runtime.registry.rollout import next_rollout
    from flowedge.runtime.registry.signing import read_signing_key

    signing = read_signing_key(key)
    connection = connection_of(ca_file, plain_http)
    before = _before(file, signing, keys, connection)
    if before is None:
        raise RegistryError(f"{file} is not there. Make it with: flowedge rollout set {file} BUNDLE")
    rollout, content = next_rollout(before, signing, stage=None, days=days)
    _finish(file, rollout, content, connection, json=json)


@app.command("show")
def show(
    file: _File,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="KEYS", help="The public keys that may have signed it.")
    ] = None,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """List the stages of a rollout file. Its signature is checked with --keys."""
    from flowedge.runtime.registry.rollout import read_rollout, unchecked_rollout
    from flowedge.trusted_keys import read_keys

    content = _content(file, connection_of(ca_file, plain_http))
    rollout = (
        unchecked_rollout(content, file) if keys is None else read_rollout(content, read_keys(keys), file)
    )
    _print(rollout, json=json)
    if keys is None:
        MESSAGES.print("The signature was not checked: name the trusted keys with --keys.")


@app.command("check")
def check(
    file: _File,
    keys: Annotated[
        Path,
        typer.Option(
            "--keys", metavar="KEYS", help="The public keys that may have signed it.", show_default=False
        ),
    ] = ...,  # type: ignore[assignment]
    station: Annotated[str, typer.Option("--station", metavar="NAME", help="The name of a station.")] = "",
    ring: Annotated[
        list[str] | None,
        typer.Option("--ring", metavar="NAME", help="A ring of the station. May be repeated."),
    ] = None,
    product: Annotated[str, typer.Option("--product", metavar="NAME", help="The product.")] = "",
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Check a rollout file and the bundle that a station would run by it, which must be signed and in its registry.

    The exit status is 1 where the file has expired.
    """
    from flowedge.clock import utc_now
    from flowedge.runtime.registry.rollout import read_rollout
    from flowedge.runtime.registry.transfer import version_of
    from flowedge.trusted_keys import read_keys

    connection = connection_of(ca_file, plain_http)
    now = utc_now()
    rollout = read_rollout(_content(file, connection), read_keys(keys), file)
    stage = rollout.stage_for(station, ring or (), product, now)
    if stage is not None:
        found = version_of(stage.bundle, connection=connection, require_signature=keys).sha256
        if found != stage.sha256:
            raise RegistryError(
                f"{stage.bundle} is another version than the rollout wants: its manifest has the SHA-256 {found}, and "
                f"{stage.sha256} is wanted. Set the rollout again."
            )
    expired = rollout.is_expired(now)
    if json:
        print_json(
            {"version": rollout.version, "expires": rollout.expires, "expired": expired, "stage": stage}
        )
    else:
        state = "expired" if expired else "holds"
        RESULTS.print(f"{file}: version {rollout.version}, {state} until {rollout.expires}", soft_wrap=True)
        begins = rollout.first_moment(station, ring or (), product)
        if stage is not None:
            runs = f"{stage.bundle} ({stage.sha256[:16]}…), by {stage.by}: {stage.why}"
        elif begins is not None:
            runs = f"no stage has begun, and the first one that fits begins at {begins}"
        else:
            runs = "no stage fits. Name the rings of the station with --ring, and its product with --product"
        RESULTS.print(f"{station or 'a station without a name'}: {runs}", soft_wrap=True)
    raise typer.Exit(1 if expired else 0)


def _content(file: str, connection: Connection) -> bytes:
    from flowedge.runtime.registry.rollout import fetch_rollout

    content = fetch_rollout(file, connection)
    if content is None:
        raise RegistryError(f"{file} is not there. Make it with: flowedge rollout set {file} BUNDLE")
    return content


def _before(file: str, signing: SigningKey, keys: Path | None, connection: Connection) -> Rollout | None:
    """Read the version before, which the same key or one of the trusted keys must have signed."""
    from flowedge.runtime.registry.rollout import fetch_rollout, read_rollout
    from flowedge.trusted_keys import TrustedKey, TrustedKeys, read_keys

    content = fetch_rollout(file, connection)
    if content is None:
        return None
    own = TrustedKey(name=signing.name, public=signing.private.public_key().public_bytes_raw())
    others = () if keys is None else tuple(key for key in read_keys(keys).keys if key.id != own.id)
    return read_rollout(content, TrustedKeys(keys or Path(f"{signing.name}.pub"), (own, *others)), file)


def _finish(file: str, rollout: Rollout, content: bytes, connection: Connection, *, json: bool) -> None:
    from flowedge.runtime.registry.rollout import store_rollout

    store_rollout(file, content, connection)
    _print(rollout, json=json)


def _print(rollout: Rollout, *, json: bool) -> None:
    if json:
        print_json(rollout)
        return
    rows = table(
        "since",
        "for",
        "product",
        "bundle",
        "SHA-256",
        "by",
        "why",
        title=f"{rollout.name}, version {rollout.version}, until {rollout.expires}, signed by {rollout.by}",
    )
    for stage in rollout.stages:
        where = ", ".join((*stage.stations, *(f"ring {ring}" for ring in stage.rings))) or "all"
        rows.add_row(
            stage.since, where, stage.product, stage.bundle, f"{stage.sha256[:16]}…", stage.by, stage.why
        )
    RESULTS.print(rows)
