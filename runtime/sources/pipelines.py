"""Take frames from a pipeline of GStreamer, such as the one of a Jetson's camera."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError, MissingPackageError, SourceError
from flowedge.runtime.protocols import Source
from flowedge.runtime.sources.frame_numbers import FrameNumbers
from flowedge.runtime.sources.live import Grab, LiveSource
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import Channels
from flowedge.source_addresses import without_password

_SINK: Final = "appsink name=flowedge max-buffers=4 drop=true sync=false"
_LOOK_NS: Final = 200_000_000  # the time after which a waiting thread looks if it is to end
_FORMATS: Final[dict[str, tuple[Channels, int, str]]] = {
    "RGB": ("rgb", 3, "u1"),
    "RGBx": ("rgb", 4, "u1"),
    "RGBA": ("rgb", 4, "u1"),
    "BGR": ("bgr", 3, "u1"),
    "BGRx": ("bgr", 4, "u1"),
    "BGRA": ("bgr", 4, "u1"),
    "GRAY8": ("gray", 1, "u1"),
    "GRAY16_LE": ("gray", 1, "<u2"),
    "rggb": ("bayer_rggb", 1, "u1"),
    "bggr": ("bayer_bggr", 1, "u1"),
    "grbg": ("bayer_grbg", 1, "u1"),
    "gbrg": ("bayer_gbrg", 1, "u1"),
}
_CSI: Final = {"width": 1920, "height": 1080, "rate": 30, "flip": 0}


def open_it(opening: Opening) -> Source:
    """Start a pipeline. A pipeline that stops is started again.

    The address is ``gstreamer:PIPELINE``, in the language of ``gst-launch-1.0``, or ``csi://SENSOR``. A pipeline
    without a sink of its own ends in RGB. One that ends in ``appsink`` decides on the format by its caps.

    Raises:
        SourceError: The pipeline cannot be read, or the address of the sensor is wrong.
        MissingPackageError: The Python bindings of GStreamer are not there.
    """
    text = pipeline_of(opening.settings.address)
    _gstreamer()
    return LiveSource(opening, partial(_Pipeline, text))


def pipeline_of(address: str) -> str:
    """Return the whole pipeline of an address.

    Raises:
        SourceError: The address of a sensor is wrong.

    Examples:
        >>> pipeline_of("gstreamer:videotestsrc ! appsink")
        'videotestsrc ! appsink'
    """
    text = address.partition(":")[2]
    if address.lower().startswith("csi:"):
        text = _csi_pipeline(address)
    if re.search(r"\bappsink\b", text):
        return text
    return f"{text} ! videoconvert ! video/x-raw,format=RGB ! {_SINK}"


def _csi_pipeline(address: str) -> str:
    """Return the pipeline of a camera at a Jetson's own connector, ``csi://0?width=1920&height=1080&rate=30&flip=0``.

    Raises:
        SourceError: A part of the address is no number, or has an unknown name.
    """
    parts = urlsplit(address)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    values = [parts.netloc, *given.values()]
    if set(given) - set(_CSI) or not all(value.isascii() and value.isdigit() for value in values):
        raise SourceError(
            f"{address} is no address of a sensor. Write it as csi://0?width=1920&height=1080&rate=30&flip=0, with the "
            "number of the sensor first."
        )
    size = _CSI | {name: int(value) for name, value in given.items()}
    return (
        f"nvarguscamerasrc sensor-id={int(parts.netloc)} ! video/x-raw(memory:NVMM),width={size['width']},"
        f"height={size['height']},framerate={size['rate']}/1,format=NV12 ! nvvidconv flip-method={size['flip']} ! "
        "video/x-raw,format=BGRx"
    )


def _gstreamer() -> Any:
    """Import GStreamer's Python bindings, which come with the system.

    Raises:
        MissingPackageError: The bindings are not there.
    """
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401, the second one gives appsink its functions
    except (ImportError, ValueError) as error:
        raise MissingPackageError(
            f"a pipeline needs GStreamer's Python bindings: {error}. Install them with: apt-get install python3-gi "
            "gir1.2-gst-plugins-base-1.0, and make the environment with: python3 -m venv --system-site-packages"
        ) from error
    Gst.init(None)
    return Gst


class _Pipeline:
    """A pipeline that runs."""

    def __init__(self, text: str) -> None:
        self._gst = _gstreamer()
        try:
            self._pipeline = self._gst.parse_launch(text)
        except Exception as error:
            raise SourceError(f"the pipeline cannot be started: {without_password(str(error))}") from error
        sinks = [one for one in self._elements() if one.get_factory().get_name() == "appsink"]
        if len(sinks) != 1:
            raise SourceError(f"a pipeline needs one appsink, and this one has {len(sinks)}")
        self._sink = sinks[0]
        self._pipeline.set_state(self._gst.State.PLAYING)

    def grabs(self) -> Iterator[Grab | None]:
        numbers = FrameNumbers()
        while True:
            sample = self._sink.try_pull_sample(_LOOK_NS)
            if sample is not None:
                yield self._grab(sample, numbers)
                continue
            message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
            if message is not None:
                error, _ = message.parse_error()
                raise SourceError(without_password(str(error.message)))
            if self._sink.is_eos():
                return
            yield None

    def close(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)

    def _elements(self) -> Iterator[Any]:
        elements = self._pipeline.iterate_recurse()
        while True:
            result, element = elements.next()
            if result != self._gst.IteratorResult.OK:
                return
            yield element

    def _grab(self, sample: Any, numbers: FrameNumbers) -> Grab:
        buffer = sample.get_buffer()
        # Not every source numbers its buffers. The largest value stands for none.
        lost = numbers.lost_before(buffer.offset) if buffer.offset != self._gst.BUFFER_OFFSET_NONE else 0
        structure = sample.get_caps().get_structure(0)
        is_mapped, mapped = buffer.map(self._gst.MapFlags.READ)
        try:
            content = np.frombuffer(mapped.data, np.uint8).copy() if is_mapped else np.zeros(0, np.uint8)
        finally:
            if is_mapped:
                buffer.unmap(mapped)
        size = (structure.get_value("height"), structure.get_value("width"))
        return Grab(partial(array_of_caps, content, str(structure.get_value("format")), *size), lost)


def array_of_caps(
    content: NDArray[np.uint8], name: str, height: int, width: int
) -> tuple[NDArray[Any], Channels]:
    """Return a buffer of GStreamer as an array, with its channels.

    Args:
        content: The bytes of the buffer. Each row ends at a multiple of four bytes.
        name: The format in the caps.
        height: The number of rows.
        width: The number of columns.

    Raises:
        ImageError: The format is not read, or the buffer is not whole. The text is the end of a sentence.
    """
    if name not in _FORMATS:
        raise ImageError(f"is in GStreamer's format {name}, which is not read. Let the pipeline end in RGB.")
    channels, count, kind = _FORMATS[name]
    samples = width * count * np.dtype(kind).itemsize
    stride = -(-samples // 4) * 4
    if height < 1 or content.size < stride * (height - 1) + samples:
        raise ImageError(f"is not whole: {content.size} bytes came for {width}x{height} pixels of {name}")
    rows = np.zeros((height, stride), np.uint8)
    rows.reshape(-1)[: min(content.size, rows.size)] = content[: rows.size]
    array = rows[:, :samples].copy().view(kind)
    return (array if count == 1 else array.reshape(height, width, count)[..., :3]), channels
