"""Read the address of a source: its kind, and the text that may be shown."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

_SCHEMES: Final = {
    "rtsp": "stream",
    "rtsps": "stream",
    "http": "stream",
    "https": "stream",
    "v4l2": "device",
    "gstreamer": "gstreamer",
    "csi": "gstreamer",
    "genicam": "genicam",
    "aravis": "aravis",
}

VIDEO_SUFFIXES: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".h264", ".h265", ".hevc", ".mjpeg", ".mjpg"}
)
"""The ends of the names of video files."""

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):(?=//)|(gstreamer):", re.IGNORECASE)
# A password may hold the signs that separate the parts of an address, so all up to the last @ goes.
_USER: Final = re.compile(r"(://)[^\s\"']*@")
_SECRET: Final = re.compile(
    r"((?:pass\w*|pwd|user-pw|proxy-pw|token|secret|auth\w*|\w*key)=)(?:\"[^\"]*\"|[^&;/\s\"]*)",
    re.IGNORECASE,
)


def kind_of(address: str) -> str:
    """Return the kind of a source by its address, a name of ``SOURCES``. An unknown scheme is its own kind."""
    if scheme := _SCHEME.match(address):
        name = (scheme[1] or scheme[2]).lower()
        return _SCHEMES.get(name, name)
    return "video" if PurePath(address).suffix.lower() in VIDEO_SUFFIXES else "images"


def is_camera(address: str) -> bool:
    """Return True for an address of a camera or a stream, and False for the path of a file or a folder."""
    return kind_of(address) not in ("images", "video")


def without_password(address: str) -> str:
    """Return an address without the user's name, the password and other secrets, for records, logs and pages.

    Examples:
        >>> without_password("rtsp://admin:secret@10.0.0.7/live?channel=1&token=abc")
        'rtsp://10.0.0.7/live?channel=1&token=***'
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1", address))
