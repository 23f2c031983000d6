"""Take frames from folders, videos, cameras and triggers.

``SOURCES`` is the only list of the kinds of sources. The file of a kind imports its library where it is used, and is
itself imported only when a source of its kind is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, cast

import msgspec

from flowedge.errors import SourceError
from flowedge.runtime.frames.pixel_range import PixelRange
from flowedge.runtime.protocols import Source
from flowedge.runtime.settings import checked
from flowedge.runtime.sources.events import Seen, SourceEvent, Tell, ignore, nothing_seen
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import SourceSettings
from flowedge.runtime.sources.triggers import with_trigger
from flowedge.source_addresses import kind_of, without_password

__all__ = ["SOURCES", "SourceEvent", "SourceSettings", "open_source"]

SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "images": "flowedge.runtime.sources.images",
        "video": "flowedge.runtime.sources.videos",
        "stream": "flowedge.runtime.sources.streams",
        "device": "flowedge.runtime.sources.streams",
        "gstreamer": "flowedge.runtime.sources.pipelines",
        "genicam": "flowedge.runtime.sources.genicam_cameras",
        "aravis": "flowedge.runtime.sources.aravis_cameras",
    }
)
"""The file of each kind of source, by the name that `flowedge.source_addresses.kind_of` gives."""


class _SourceFile(Protocol):
    """The file of one kind of source."""

    def open_it(self, opening: Opening) -> Source:
        """Open a source."""
        ...


def open_source(
    settings: SourceSettings | str,
    *,
    folder: Path = Path(),
    pixel_range: PixelRange | None = None,
    tell: Tell = ignore,
    seen: Seen = nothing_seen,
) -> Source:
    """Open a source of frames.

    Args:
        settings: The settings, or an address alone.
        folder: The folder that the path of a file or a folder is relative to.
        pixel_range: The levels that become 0 and 255 in frames of more than 8 bits, where the settings have no
            ``window``.
        tell: Takes the events of the source, such as a camera that is lost and back. Threads of the source call it.
        seen: Takes the id and the version of a file's frame. A frame for which it returns True is left out.

    Raises:
        SourceError: The address is of no known kind, or the source cannot be opened at all. A camera that does not
            answer is no error: the source waits for it and tells an event.
        SettingsError: A setting is not allowed, such as an empty address.
        DataError: The address stands for no image.
        MissingPackageError: The package that opens this kind of source is not installed.
    """
    if isinstance(settings, str):
        settings = SourceSettings(address=settings)
    settings = checked(settings)
    kind = kind_of(settings.address)
    if kind not in SOURCES:
        raise SourceError(
            f"{without_password(settings.address)} is of no known kind of source ({kind}). "
            "Name a file, a folder, a pattern or an address that begins with one of: rtsp, http, v4l2, gstreamer, csi, "
            "genicam, aravis."
        )
    if settings.watch and kind != "images":
        raise SourceError(f"watch = true is for folders, and {without_password(settings.address)} is none.")
    if kind in ("images", "video"):
        settings = msgspec.structs.replace(settings, address=str(folder / settings.address))
    opening = Opening(
        settings=settings,
        name=settings.name or without_password(settings.address),
        window=settings.window or pixel_range,
        tell=tell,
        seen=seen,
    )
    source = cast(_SourceFile, importlib.import_module(SOURCES[kind])).open_it(opening)
    return with_trigger(source, opening, settings)
