"""Take frames from GenICam cameras through the producer (``.cti``) of their maker, by the package harvesters.

The adapter was run against the simulator producer of the package genicam, which has no exposure and no trigger. No real
camera of this kind has been tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, SourceError
from flowedge.packages import explain_missing
from flowedge.runtime.protocols import Source
from flowedge.runtime.sources.frame_numbers import FrameNumbers
from flowedge.runtime.sources.live import Grab, LiveSource
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.pixel_formats import array_of
from flowedge.runtime.sources.settings import Channels, Option

_LOOK_S: Final = 0.2  # the time after which a waiting thread looks if it is to end
_PATHS: Final = "GENICAM_GENTL64_PATH"


def open_it(opening: Opening) -> Source:
    """Connect to a camera. A camera that does not answer is waited for.

    The address is ``genicam:///PATH/PRODUCER.cti`` with ``?device=SERIAL`` behind it where there are several cameras.
    Without a path the producers of the environment variable ``GENICAM_GENTL64_PATH`` are taken.

    Raises:
        SourceError: There is no such producer.
        MissingPackageError: The packages genicam and harvesters are not installed.
    """
    with explain_missing("genicam"):
        import harvesters.core  # noqa: F401
    address = urlsplit(opening.settings.address)
    producers = _producers(address.netloc + address.path)
    device = parse_qs(address.query).get("device", [""])[0]
    connect = partial(_Camera, producers, device, opening.settings.options)
    return LiveSource(opening, connect)


def _producers(path: str) -> list[str]:
    """Return the files of the producers.

    Raises:
        SourceError: A file is not there, or none is named anywhere.
    """
    if path:
        if not os.path.isfile(path):
            raise SourceError(
                f"{path} is no file, so it is no producer of GenICam. Name the producer's file after three strokes, "
                "such as genicam:///opt/maker/producer.cti"
            )
        return [path]
    folders = [Path(folder) for folder in os.environ.get(_PATHS, "").split(os.pathsep) if folder]
    found = sorted(str(file) for folder in folders for file in folder.glob("*.cti"))
    if not found:
        raise SourceError(
            f"no producer of GenICam is named. Install the camera maker's, and name its file as genicam:///PATH.cti or "
            f"its folder in {_PATHS}."
        )
    return found


class _Camera:
    """A connection to one camera."""

    def __init__(self, producers: list[str], device: str, options: Mapping[str, Option]) -> None:
        from harvesters.core import Harvester

        self._harvester: Any = Harvester()
        self._acquirer: Any = None
        try:
            for file in producers:
                self._harvester.add_file(file)
            self._harvester.update()
            self._acquirer = self._harvester.create(self._number_of(device))
            for name, value in options.items():
                self._set(name, value)
            self._acquirer.start()
        except BaseException:
            self.close()
            raise

    def grabs(self) -> Iterator[Grab | None]:
        from genicam.gentl import TimeoutException

        numbers = FrameNumbers()
        while True:
            try:
                buffer = self._acquirer.fetch(timeout=_LOOK_S)
            except TimeoutException:
                yield None
                continue
            with buffer:
                lost = numbers.lost_before(buffer.module.frame_id)
                yield Grab(partial(_given, *_copied(buffer)), lost)

    def fire(self) -> None:
        """Let the camera take one frame."""
        self._acquirer.remote_device.node_map.get_node("TriggerSoftware").execute()

    def close(self) -> None:
        if self._acquirer is not None:
            self._acquirer.stop()
            self._acquirer.destroy()
        self._harvester.reset()

    def _number_of(self, device: str) -> int:
        """Return the place of a camera in the producer's list.

        Raises:
            SourceError: There is no such camera, or none at all.
        """
        found = [one.serial_number for one in self._harvester.device_info_list]
        if not found:
            raise SourceError("the producer finds no camera. Check its cable, its power and its network.")
        if device and device not in found:
            raise SourceError(f"there is no camera {device}. There are: {', '.join(found)}")
        return found.index(device) if device else 0

    def _set(self, name: str, value: Option) -> None:
        """Set a feature of the camera.

        Raises:
            SourceError: The camera has no such feature, or refuses the value.
        """
        try:
            self._acquirer.remote_device.node_map.get_node(name).value = value
        except Exception as error:
            raise SourceError(f"the camera does not take {name} = {value!r}: {error}") from error


def _copied(buffer: Any) -> tuple[NDArray[Any], str, int, int]:
    """Copy the first picture of a buffer, which the producer fills again."""
    components = buffer.payload.components
    if not components:
        return np.zeros(0, np.uint8), "Mono8", 0, 0
    one = components[0]
    return one.data.copy(), str(one.data_format), int(one.height), int(one.width)


def _given(content: NDArray[Any], name: str, height: int, width: int) -> tuple[NDArray[Any], Channels]:
    if height == 0:
        raise ImageError("holds no picture")
    return array_of(content, name, height, width)
