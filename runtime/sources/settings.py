"""Define the settings of a source of frames and of its trigger, as the site's file gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from flowedge.runtime.settings import Settings

Channels: TypeAlias = Literal[
    "", "rgb", "bgr", "gray", "bayer_rggb", "bayer_bggr", "bayer_grbg", "bayer_gbrg"
]
"""The channels of a source's frames. A Bayer pattern is named by its first four pixels, row by row."""

Option: TypeAlias = str | int | float | bool
"""The value of an option of the library that opens a source."""


class SourceSettings(Settings, frozen=True, kw_only=True):
    """The settings of one source of frames.

    Attributes:
        address: The place of the frames: an image, a folder, a pattern, a video file, ``rtsp://…``, ``http://…``,
            ``v4l2:///dev/video0``, ``gstreamer:PIPELINE``, ``csi://0``, ``genicam://…`` or ``aravis://…``.
        name: The name of the source in records. By default the address without its password.
        watch: True waits for the pictures that come into a folder, without an end.
        recursive: True searches a folder with its subfolders.
        color: The channels of the frames, where the source does not declare them itself or declares them wrongly.
        window: The two levels that become 0 and 255 in frames of more than 8 bits, the lower one first.
        user: The user's name at a camera that asks for one.
        password_env: The environment variable that holds the password.
        password_file: The file that holds the password.
        options: Options of the library that opens the source: FFmpeg's for streams and devices, the names of features
            for GenICam cameras.
        timeout_s: The time without a frame after which a camera counts as lost, in seconds.
        reconnect_s: The pause before the first try to connect again, in seconds. Each further pause is twice as long.
        reconnect_most_s: The longest pause before a try to connect again, in seconds.
    """

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    watch: bool = False
    recursive: bool = True
    color: Channels = ""
    window: tuple[float, float] | None = None
    user: Annotated[str, msgspec.Meta(max_length=200)] = ""
    password_env: str | None = None
    password_file: Path | None = None
    options: Mapping[str, Option] = msgspec.field(default_factory=dict)
    timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0
    reconnect_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 1.0
    reconnect_most_s: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 30.0
