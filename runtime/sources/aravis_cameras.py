"""Take frames from GigE Vision and USB3 Vision cameras by the library Aravis, which needs no producer.

The source was run against Aravis's fake GigE Vision camera. No real camera has been tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, MissingPackageError, SourceError
from flowedge.runtime.protocols import Source
from flowedge.runtime.sources.frame_numbers import FrameNumbers
from flowedge.runtime.sources.live import Grab, LiveSource
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.pixel_formats import array_of
from flowedge.runtime.sources.settings import Channels, Option

_BUFFERS: Final = 10
_LOOK_US: Final = 200_000  # the time after which a waiting thread looks if it is to end


def open_it(opening: Opening) -> Source:
    """Connect to a camera. A camera that does not answer is waited for.

    The address is ``aravis://CAMERA`` with the camera's IP address, its name or its serial number. Without one the
    first camera that is found is taken.

    Raises:
        MissingPackageError: Aravis or its Python bindings are not there.
    """
    _aravis()
    name = urlsplit(opening.settings.address).netloc
    return LiveSource(opening, partial(_Camera, name, opening.settings.options))


def _aravis() -> Any:
    """Import Aravis's Python bindings, which come with the system.

    Raises:
        MissingPackageError: The bindings are not there.
    """
    try:
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis
    except (ImportError, ValueError) as error:
        raise MissingPackageError(
            f"this camera needs the Python bindings of Aravis: {error}. Install them with: apt-get install python3-gi "
            "gir1.2-aravis-0.8, and make the environment with: python3 -m venv --system-site-packages"
        ) from error
    return Aravis


class _Camera:
    """A connection to one camera."""

    def __init__(self, name: str, options: Mapping[str, Option]) -> None:
        self._aravis = _aravis()
        self._camera = self._aravis.Camera.new(name or None)
        self._device = self._camera.get_device()
        for feature, value in options.items():
            self._set(feature, value)
        self._stream = self._camera.create_stream(None, None)
        size = self._camera.get_payload()
        for _ in range(_BUFFERS):
            self._stream.push_buffer(self._aravis.Buffer.new_allocate(size))
        self._camera.start_acquisition()

    def grabs(self) -> Iterator[Grab | None]:
        numbers = FrameNumbers()
        while True:
            buffer = self._stream.timeout_pop_buffer(_LOOK_US)
            if buffer is None:
                # A camera that is gone raises an error here, also where it waits for a trigger for hours.
                self._camera.get_region()
                yield None
                continue
            status = buffer.get_status().value_nick
            if status == "success":
                lost = numbers.lost_before(buffer.get_frame_id())
                content = np.frombuffer(buffer.get_data(), np.uint8)
                size = (buffer.get_image_height(), buffer.get_image_width())
                grab = Grab(
                    partial(array_of, content, self._camera.get_pixel_format_as_string(), *size), lost
                )
            else:
                # The number of a buffer that is not whole may be that of an earlier frame.
                numbers.skip()
                grab = Grab(partial(_incomplete, status))
            self._stream.push_buffer(buffer)
            yield grab

    def fire(self) -> None:
        """Let the camera take one frame."""
        self._camera.software_trigger()

    def close(self) -> None:
        self._camera.stop_acquisition()

    def _set(self, feature: str, value: Option) -> None:
        """Set a feature of the camera.

        Raises:
            SourceError: The camera has no such feature, or refuses the value.
        """
        device = self._device
        setters = {
            bool: device.set_boolean_feature_value,
            int: device.set_integer_feature_value,
            float: device.set_float_feature_value,
            str: device.set_string_feature_value,
        }
        try:
            setters[type(value)](feature, value)
        except Exception as error:
            raise SourceError(f"the camera does not take {feature} = {value!r}: {error}") from error


def _incomplete(status: str) -> tuple[NDArray[Any], Channels]:
    raise ImageError(f"is not whole: {status}")
