"""Write small videos with PyAV, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def picture(number: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """Return an RGB picture that tells its number: its grey level rises, and a line moves."""
    pixels = np.full((height, width, 3), 40 + number * 4 % 180, np.uint8)
    pixels[number % height] = 255
    return pixels


def write_video(path: Path, frames: int = 40, codec: str = "libx264", *, faststart: bool = False) -> Path:
    """Write a video of 25 frames a second, whose every tenth frame builds on no other."""
    import av

    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {} if codec == "mjpeg" else {"g": "10", "bf": "0"}
        for number in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def damage(path: Path, share: float, length: int = 100) -> None:
    """Overwrite bytes of a file, at a share of its length, by noise."""
    content = bytearray(path.read_bytes())
    place = int(len(content) * share)
    content[place : place + length] = np.random.default_rng(0).integers(0, 256, length, np.uint8).tobytes()
    path.write_bytes(content)
