"""Take frames from a video file by FFmpeg, and report what is damaged or missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowedge.errors import ImageError, SourceError
from flowedge.files import open_regular_file
from flowedge.runtime.image_files import version_of
from flowedge.runtime.protocols import Frame, Source
from flowedge.runtime.sources.decoding import Decoded, Decoding, ffmpeg
from flowedge.runtime.sources.opening import Opening

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# A file may be of these formats alone. A playlist, which names other files and addresses, is none of them.
_FORMATS: Final = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,h264,hevc,mjpeg,mjpeg_2000"
)
_SHORT_S: Final = 1.5  # frames that may be missing at the end, since the durations of containers are rounded


def open_it(opening: Opening) -> Source:
    """Open a video file.

    Raises:
        SourceError: The file cannot be read, or holds no video.
        MissingPackageError: PyAV is not installed.
    """
    return Video(Path(opening.settings.address), opening)


class Video:
    """A video file as a source of frames, at the speed of the reader. The first frame has the number 1."""

    def __init__(self, path: Path, opening: Opening) -> None:
        self._path = path
        self._opening = opening
        self._version = version_of(path)
        self._closed = threading.Event()
        _open(path).close()

    def frames(self) -> Iterator[Frame]:
        """Decode the frames one by one.

        A frame has a problem where it is damaged or builds on a damaged one. Where the file is shorter than it
        declares, its last frame has a problem, and so has one more frame that stands for the missing ones.
        """
        for number, decoded in enumerate(self._held(), start=1):
            frame_id = f"{self._path}#{number}"
            if self._closed.is_set():
                return
            if not self._opening.seen(frame_id, self._version):
                yield self._frame(frame_id, decoded)

    def close(self) -> None:
        """End an iteration before the next frame."""
        self._closed.set()

    def _held(self) -> Iterator[Decoded]:
        """Give each frame after the next one was read, since the last frame before a sudden end cannot be trusted."""
        held: Decoded | None = None
        count, end_s = 0, 0.0
        with _open(self._path) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            declared_s = _declared_s(container, stream)
            declared = stream.frames if container.format.name.startswith("mov") else 0
            is_cut = False
            for decoded in _decoded(container, stream):
                if held is not None:
                    yield held
                held = decoded
                count += 1
                end_s = max(end_s, decoded.time_s or 0.0)
                is_cut = decoded.content is None
            start_s = float((stream.start_time or 0) * (stream.time_base or 0))
        length_s = end_s - min(start_s, 0.0) + (1 / rate if rate else 0.0)
        if count < declared:
            missing = f"the file declares {declared} frames and has {count}"
        elif rate and declared_s - length_s > _SHORT_S / rate:
            missing = f"the file declares {declared_s:.2f} s and ends after {length_s:.2f} s"
        elif is_cut or count == 0:
            missing = "the file ends within a frame"
        else:
            missing = ""
        if held is not None:
            if missing and not held.problem:
                problem = "cannot be trusted, since it is the last before a sudden end"
                held = held._replace(content=None, problem=problem)
            yield held
        if missing:
            yield Decoded(None, f"is missing, since {missing}. Copy the file again from its source.")

    def _frame(self, frame_id: str, decoded: Decoded) -> Frame:
        return self._opening.frame(
            frame_id, decoded.pixels, monotonic_ns=time.monotonic_ns(), version=self._version
        )


def _open(path: Path) -> InputContainer:
    """Open a file by FFmpeg, which may open no other file for it.

    Raises:
        SourceError: The file cannot be read, or holds no video.
    """
    av = ffmpeg()
    try:
        open_regular_file(path).close()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Name a video file.") from error
    try:
        container: InputContainer = av.open(
            f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        )
    except av.error.FFmpegError as error:
        raise SourceError(
            f"{path} is no video that can be read: {error.strerror}. Copy it again from its source, or convert it."
        ) from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{path} holds no video. Name a video file.")
    return container


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[Decoded]:
    """Decode all packets of a stream."""
    av = ffmpeg()
    try:
        decoding = Decoding(stream)
    except ImageError as error:
        yield Decoded(None, str(error))
        return
    try:
        for packet in container.demux(stream):
            yield from decoding(packet)
    except av.error.FFmpegError as error:
        yield Decoded(None, f"cannot be read: {error.strerror}")


def _declared_s(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration that a file declares in seconds, or 0 where it declares none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6
