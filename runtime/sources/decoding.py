"""Decode the packets of a video stream by FFmpeg, and mark each frame that damage may have reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.packages import explain_missing
from flowedge.runtime.device.limits import MAX_BYTES, MAX_PIXELS, size_problem
from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
from flowedge.runtime.sources.settings import Channels

if TYPE_CHECKING:
    import av
    import av.video.stream

# The decoder reports what it can find out about damage. Without explode it hides much of it by copying neighbours.
_DETECT: Final = "crccheck+bitstream+buffer+explode"
_BAYER: Final[tuple[Channels, ...]] = ("bayer_rggb", "bayer_bggr", "bayer_grbg", "bayer_gbrg")


class Decoded(NamedTuple):
    """A frame as the decoder gave it, or the reason why there is none.

    Attributes:
        content: FFmpeg's frame, or the pixels of a JPEG picture. The content is None where nothing was decoded.
        problem: The reason why the frame cannot be trusted, as the end of a sentence.
        time_s: The time of the frame in its stream, where it is known.
    """

    content: av.VideoFrame | NDArray[Any] | None
    problem: str = ""
    time_s: float | None = None

    def pixels(self) -> tuple[NDArray[Any], Channels]:
        """Return the frame as an array with its channels.

        Raises:
            ImageError: The frame cannot be trusted, or is of a format that is not read.
        """
        if self.content is None or self.problem:
            raise ImageError(self.problem)
        if isinstance(self.content, np.ndarray):
            return self.content, "rgb"
        return _array(self.content)


class Decoding:
    """Decodes the packets of one video stream in their order."""

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        """Prepare the decoder of a stream that was opened.

        Raises:
            ImageError: The frames exceed a limit of `flowedge.runtime.device.limits`.
        """
        context = stream.codec_context
        if context.width and context.height and (problem := size_problem(context.height, context.width)):
            raise ImageError(problem)
        # A stream may change its size later, so that the decoder has the limit as well.
        context.options = {"err_detect": _DETECT, "max_pixels": str(MAX_PIXELS), **context.options}
        self._is_mjpeg = context.name == "mjpeg"
        # The time of the latest damage, in units of the stream. The frames up to the next whole picture build on it.
        self._damage: int | None = None

    def __call__(self, packet: av.Packet[Any]) -> Iterator[Decoded]:
        """Decode one packet. An empty packet gives the frames that the decoder still holds."""
        if self._is_mjpeg:
            if packet.size:
                yield _picture(packet)
            return
        av = ffmpeg()
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._note_damage(packet.pts)
            yield Decoded(None, f"cannot be decoded: {error.strerror}", _seconds(packet))
            return
        if packet.is_corrupt:
            self._note_damage(packet.pts)
        for frame in frames:
            if frame.is_corrupt:
                self._note_damage(frame.pts)
                yield Decoded(frame, "is damaged", frame.time)
            elif self._builds_on_damage(frame):
                yield Decoded(
                    frame, "may show damage, since it builds on a damaged frame before it", frame.time
                )
            else:
                self._damage = None
                yield Decoded(frame, "", frame.time)

    def _note_damage(self, pts: int | None) -> None:
        self._damage = max(pts or 0, self._damage or 0)

    def _builds_on_damage(self, frame: av.VideoFrame) -> bool:
        """Return False for a frame before which nothing is damaged, and for a whole picture after all damage.

        A decoder may hold back whole pictures of an earlier time, so the times are compared.
        """
        if self._damage is None:
            return False
        return not frame.key_frame or (frame.pts is not None and frame.pts <= self._damage)


def ffmpeg() -> Any:
    """Import PyAV.

    Raises:
        MissingPackageError: PyAV is not installed.
    """
    with explain_missing("station"):
        import av
    return av


def _picture(packet: av.Packet[Any]) -> Decoded:
    """Decode one picture of Motion JPEG by the reader of files, which finds damage that FFmpeg leaves unmentioned."""
    if packet.size > MAX_BYTES:
        return Decoded(
            None, f"has {packet.size / 1e6:.0f} MB, more than a picture may have", _seconds(packet)
        )
    try:
        return Decoded(decode(bytes(packet)), "", _seconds(packet))
    except (DamagedError, RefusedError) as error:
        return Decoded(None, f"is damaged: {error}", _seconds(packet))


def _seconds(packet: av.Packet[Any]) -> float | None:
    if packet.pts is None or packet.time_base is None:
        return None
    return float(packet.pts * packet.time_base)


def _array(frame: av.VideoFrame) -> tuple[NDArray[Any], Channels]:
    """Return a frame of FFmpeg as an array, grey and Bayer levels as they are and all else as RGB."""
    if problem := size_problem(frame.height, frame.width):
        raise ImageError(problem)
    name = frame.format.name
    own: Channels = "rgb"
    if name.startswith("gray"):
        own = "gray"
    for pattern in _BAYER:
        if name.startswith(pattern):
            own = pattern
    try:
        if own != "rgb" or name in ("rgb48le", "rgb48be"):
            return frame.to_ndarray(), own
        return frame.to_ndarray(format="rgb24"), own
    except (ValueError, OSError) as error:
        raise ImageError(f"is in FFmpeg's pixel format {name}, which is not read: {error}") from error
