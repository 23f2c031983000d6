"""Take frames from network cameras and capture devices by FFmpeg: RTSP, Motion JPEG over HTTP, and Video4Linux."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from flowedge.errors import ImageError, SourceError
from flowedge.runtime.protocols import Source
from flowedge.runtime.settings import secret_of
from flowedge.runtime.sources.decoding import Decoding, ffmpeg
from flowedge.runtime.sources.live import Grab, LiveSource, connect_limit
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import SourceSettings

if TYPE_CHECKING:
    import av.container

_NETWORK: Final = "rtp,rtcp,srtp,udp,tcp,tls,rtsp,rtsps,http,https,crypto,httpproxy"
_PROBING: Final[Mapping[str, str]] = {"analyzeduration": "100000", "probesize": "32768"}
"""Options by which the first frame comes after some hundredths of a second, not after a second."""


def open_it(opening: Opening) -> Source:
    """Connect to a camera. A camera that does not answer is waited for.

    Raises:
        SettingsError: The password that the settings name is not there.
        MissingPackageError: PyAV is not installed.
    """
    av = ffmpeg()
    settings = opening.settings
    file, form, options = _opened_as(settings)

    limits = (connect_limit(settings.timeout_s) or None, settings.timeout_s or None)

    def connect() -> _Stream:
        return _Stream(av.open(file, format=form, options=options, timeout=limits))

    def explain(error: Exception) -> str:
        # FFmpeg's own text holds the address with its password.
        return str(getattr(error, "strerror", None) or type(error).__name__)

    return LiveSource(opening, connect, explain)


def _opened_as(settings: SourceSettings) -> tuple[str, str | None, dict[str, str]]:
    """Return what FFmpeg opens, the format if it is fixed, and FFmpeg's options.

    Raises:
        SettingsError: The password that the settings name is not there.
        SourceError: The address of a device is no path.
    """
    given = {name: str(value) for name, value in settings.options.items()}
    address = urlsplit(settings.address)
    if address.scheme.lower() == "v4l2":
        if not address.path.startswith("/dev/") or address.netloc:
            raise SourceError(
                f"{settings.address} is no address of a device. Write it with three strokes: v4l2:///dev/video0"
            )
        return address.path, "v4l2", given
    form = given.pop("format", None if address.scheme.lower().startswith("rtsp") else "mpjpeg")
    transport = {} if form else {"rtsp_transport": "tcp"}
    options = {"protocol_whitelist": _NETWORK, **_PROBING, **transport, **given}
    return _with_user(settings), form, options


def _with_user(settings: SourceSettings) -> str:
    """Return the address with the user's name and the password of the settings."""
    password = secret_of(settings.password_env, settings.password_file)
    if settings.username is None:
        return settings.address
    address = urlsplit(settings.address)
    user = quote(settings.username, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    return urlunsplit(address._replace(netloc=f"{user}@{address.netloc.rpartition('@')[2]}"))


class _Stream:
    """A connection that FFmpeg has opened."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._container = container

    def grabs(self) -> Iterator[Grab]:
        if not self._container.streams.video:
            raise SourceError("the stream holds no video")
        stream = self._container.streams.video[0]
        try:
            decoding = Decoding(stream)
        except ImageError as error:
            raise SourceError(f"its picture {error}") from error
        for packet in self._container.demux(stream):
            for decoded in decoding(packet):
                yield Grab(decoded.pixels)

    def close(self) -> None:
        self._container.close()
