"""Define the settings of the page: the table ``[page]`` of ``station.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from flowedge.runtime.settings import Settings

HostName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
"""A name of a computer."""


class PageSettings(Settings, frozen=True, kw_only=True):
    """The settings of the page that shows the station in a browser.

    Attributes:
        enabled: True serves the page, the metrics and the health.
        address: The address that the page listens on. With an address other than ``127.0.0.1`` other computers see it.
        port: The TCP port. With 0 the system chooses a free one.
        hosts: Further names by which browsers may reach the page, such as the name of a proxy. Numeric addresses,
            ``localhost`` and the computer's own name are always allowed.
        token_env: The environment variable with the token that allows changes. Without a token the page only shows.
        token_file: The file with the token that allows changes, instead of ``token_env``.
        tls_certificate: The file of the certificate chain, PEM. With it the page is served by HTTPS.
        tls_key: The file of the certificate's private key, PEM.
        pictures_per_second: The most pictures that are drawn in a second, for all browsers together.
        longest_px: The longer side of the live picture in pixels.
        stale_after_s: The time in seconds without a new verdict after which the page marks the picture as old.
        connections: The most connections at once. Beyond it the one that has been idle longest is closed.
        streams: The most browsers that follow the line at once.
    """

    enabled: bool = True
    address: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    hosts: Annotated[tuple[HostName, ...], msgspec.Meta(max_length=50)] = ()
    token_env: str | None = None
    token_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    pictures_per_second: Annotated[float, msgspec.Meta(gt=0, le=30)] = 4.0
    longest_px: Annotated[int, msgspec.Meta(ge=160, le=4096)] = 960
    stale_after_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 10.0
    connections: Annotated[int, msgspec.Meta(ge=4, le=10000)] = 64
    streams: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
