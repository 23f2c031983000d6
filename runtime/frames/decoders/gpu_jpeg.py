"""Decode JPEG files on an NVIDIA GPU through nvImageCodec, as an option for who accepts its rounding.

The pixels of every other decoder are PIL's to the last grey level. nvJPEG, which nvImageCodec calls, rounds its inverse
transform and its colours in another way. So this decoder is never chosen without being asked for. Its difference from
libjpeg-turbo is measured on a test picture when it is opened, and goes into each record.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError
from flowedge.packages import pip_install
from flowedge.runtime.device.machine import without_driver
from flowedge.runtime.frames.decoders import jpeg

_LOG: Final = logging.getLogger(__name__)

MOST_LEVELS: Final = 8
"""The largest difference from libjpeg-turbo in grey levels on the test picture. A larger one is no rounding."""

_TEST_SIZE: Final = (128, 160)
# libjpeg-turbo interpolates subsampled colours by default, and nvJPEG only on request.
_OPTIONS: Final = ":fancy_upsampling=1"


class GpuJpegs:
    """A decoder of JPEG files on a GPU. Threads may share one, and decode one after the other.

    Attributes:
        words: A sentence with the library, its version and its difference from libjpeg-turbo, for the records of the
            files that the GPU decodes.
    """

    def __init__(self, device: int = 0) -> None:
        """Open the decoder and compare it with libjpeg-turbo on a test picture.

        Args:
            device: The number of the GPU.

        Raises:
            EngineUnavailableError: nvImageCodec is not installed, finds no GPU, or decodes the test picture wrongly.
        """
        try:
            from nvidia import nvimgcodec  # pyright: ignore[reportAttributeAccessIssue]
        except ImportError as error:
            raise EngineUnavailableError(
                f"decoding JPEG files on the GPU needs nvidia.nvimgcodec, which cannot be imported: {error}. "
                f"Install it with: {pip_install('gpu-jpeg')}, or leave the option out.{without_driver()}"
            ) from error
        try:
            self._decoder: Any = nvimgcodec.Decoder(device_id=device, options=_OPTIONS)
            # The orientation that a camera noted is not applied, as for every other decoder.
            self._parameters: Any = nvimgcodec.DecodeParams(
                apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
            )
        except RuntimeError as error:
            raise EngineUnavailableError(
                f"nvImageCodec cannot start: {' '.join(str(error).split())}. Check the GPU with nvidia-smi, or leave "
                "the option out."
            ) from error
        self._lock = threading.Lock()
        difference = self._difference()
        self.words = (
            f"The JPEG file was decoded by nvImageCodec {nvimgcodec.__version__}, whose grey levels differ from those "
            f"of libjpeg-turbo by up to {difference} on a test picture"
        )

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a JPEG file. The host decodes files in four inks or in RGB, and those that the GPU does not take.

        Raises:
            DamagedError: Part of the picture is missing.
            RefusedError: The file is of a rare variant, too large, or holds several pictures.
        """
        return self.noted(data)[0]

    def noted(self, data: bytes) -> tuple[NDArray[np.uint8], str]:
        """Decode a JPEG file as a call does, and tell by `words` that the GPU did it, or by an empty text the host.

        Raises:
            DamagedError: Part of the picture is missing.
            RefusedError: The file is of a rare variant, too large, or holds several pictures.
        """
        pixels = self._decoded(data) if jpeg.colours_of(data) in ("grey", "YCbCr") else None
        return (jpeg.decode(data), "") if pixels is None else (pixels, self.words)

    def _decoded(self, data: bytes) -> NDArray[np.uint8] | None:
        with self._lock:
            try:
                image = self._decoder.decode(data, params=self._parameters)
                if image is None:
                    return None
                pixels: NDArray[np.uint8] = np.array(image.cpu())
            except RuntimeError as error:  # for instance of a GPU without free memory
                _LOG.warning("nvImageCodec leaves a JPEG file to the host: %s", " ".join(str(error).split()))
                return None
        return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 else None

    def _difference(self) -> int:
        """Return the largest difference from libjpeg-turbo on a test picture, in grey levels."""
        noise = np.random.default_rng(0).integers(0, 256, (*_TEST_SIZE, 3), np.uint8)
        picture = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (9, 9), 0), [cv2.IMWRITE_JPEG_QUALITY, 90])[
            1
        ].tobytes()
        expected, found = jpeg.decode(picture), self._decoded(picture)
        if found is None or found.shape != expected.shape:
            raise EngineUnavailableError(
                "nvImageCodec does not decode a test picture. Check the GPU with nvidia-smi, or leave the option out."
            )
        difference = int(np.abs(found.astype(np.int16) - expected).max())
        if difference > MOST_LEVELS:
            raise EngineUnavailableError(
                f"nvImageCodec decodes a test picture with grey levels that are {difference} away from those of "
                f"libjpeg-turbo, and the limit is {MOST_LEVELS}. Leave the option out."
            )
        return difference
