"""Make the INT8 model that the users of another project would make, by NNCF, from its ONNX file and good images."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.children import clean_environment
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.bench.peers import image_size_of
from flowedge.runtime.frames.images import read_image
from flowedge.text import printable

_SCRIPT: Final = Path(__file__).with_name("nncf_int8.py")
_MOST_IMAGES: Final = 300  # NNCF looks at no more


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInt8:
    """The INT8 model of a foreign ONNX file.

    Attributes:
        file: The model in OpenVINO's format.
        correlation: The lowest correlation of a map with the map of the same file in float32. The value is None
            where a map is flat or not finite.
        note: The versions and the images, in one sentence.
    """

    file: Path
    correlation: float | None
    note: str


def peer_int8(
    peer: Path,
    images: Sequence[Path],
    frames: Sequence[NDArray[np.uint8]] | None,
    *,
    python: Path,
    folder: Path,
) -> PeerInt8:
    """Quantise a foreign ONNX file through NNCF, and compare its maps with those of the same file in float32.

    Args:
        peer: The ONNX file. It takes RGB images in 0..1, as anomalib's files do.
        images: The files of the good images to calibrate on.
        frames: The frames ``(H, W, 3)`` whose maps are compared. Without frames, the maps of the images are.
        python: The Python that has NNCF and OpenVINO.
        folder: The folder that the model is written to.

    Raises:
        EngineUnavailableError: The file does not take one image, or NNCF is missing or cannot quantise it.
        ImageError: An image cannot be read.
    """
    size = image_size_of(peer)
    seen = images[:_MOST_IMAGES]
    # The script runs in the folder, where a relative path would name something else.
    python, folder = python.absolute(), folder.absolute()
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.stack([_resized(read_image(image), size) for image in seen]))
    if frames is not None:
        np.save(folder / "frames.npy", np.stack([_resized(frame, size) for frame in frames]))
    compared, target = folder / ("images.npy" if frames is None else "frames.npy"), folder / "int8.xml"
    # An isolated interpreter does not find the modules beside the script under the names of other packages.
    command: list[str | Path] = [python, "-I", _SCRIPT]
    command += [peer.absolute(), folder / "images.npy", compared, target]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=clean_environment(), cwd=folder
        )
    except OSError as error:
        raise EngineUnavailableError(
            f"{python} cannot be started: {error.strerror}. Name a Python with NNCF by --peer-python."
        ) from error
    if done.returncode != 0:
        last = printable((done.stderr.strip().splitlines() or ["no reason"])[-1])
        advice = (
            f"Install it with: {python} -m pip install nncf openvino, or name another Python by --peer-python."
            if "No module named" in last
            else "Time it without --peer-images."
        )
        raise EngineUnavailableError(f"NNCF cannot quantise {peer}: {last}. {advice}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return PeerInt8(
        file=target,
        correlation=found["correlation"],
        note=f"INT8 by NNCF {found['nncf']}, calibrated on {len(seen)} images of {os.path.dirname(seen[0])}",
    )


def _resized(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
