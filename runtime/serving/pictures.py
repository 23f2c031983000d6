"""Judge the picture of a plain request: a JPEG or a PNG in, a verdict with its regions out."""

from __future__ import annotations

import base64
import struct
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from flowedge.runtime.render import encoded
from flowedge.runtime.result import Result
from flowedge.runtime.serving.loaded import LoadedModel
from flowedge.runtime.serving.messages import Answer, json_answer
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.settings import LimitSettings
from flowedge.runtime.serving.tensors import check_pixels

Picture: TypeAlias = Literal["png", "overlay"]
"""The picture of the map that an answer may have: its values, or the findings drawn on the frame."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_LARGEST_LEVEL: Final = 65535


class PictureInspection:
    """The picture of one request, and what its answer is to hold."""

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        product: str | None,
        content: bytes,
        picture: Picture | None,
        limits: LimitSettings,
    ) -> None:
        """Check the kind and the size of the picture, which is decoded later.

        Args:
            name: The name of the model.
            model: The model.
            product: The product, for a pack.
            content: The JPEG or the PNG.
            picture: The picture of the map that the answer is to hold, if any.
            limits: The limits.

        Raises:
            RequestError: The content is no JPEG and no PNG, or the picture is too large.
        """
        height, width = picture_size(content)
        check_pixels(height, width, limits)
        self._name, self._model, self._product = name, model, product
        self._content, self._picture = content, picture

    def load(self, number: int) -> NDArray[np.uint8]:
        """Decode the picture, which is the frame 0.

        Raises:
            ImageError: The picture is damaged or not whole.
        """
        return self._model.frame_of(self._content)

    def finish(self, results: list[Result]) -> Answer:
        """Make the answer."""
        (result,) = results
        height, width = result.frame_size
        answer: dict[str, Any] = {"model": self._name}
        if self._product is not None:
            answer["product"] = self._product
        answer |= {"height": height, "width": width, **result.to_dict()}
        if self._picture == "png":
            answer["map"] = map_picture(result)
        elif self._picture == "overlay":
            answer["overlay"] = {"png": _base64(encoded(result.plot(), ".png"))}
        return json_answer(answer)


def picture_size(content: bytes) -> tuple[int, int]:
    """Return the height and the width of a JPEG or a PNG from its header.

    Raises:
        RequestError: The content is neither, or its header is damaged.
    """
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return int(height), int(width)
    if content.startswith(_JPEG):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
        except ValueError as error:
            raise _no_picture(f"the header of the JPEG is damaged: {error}", 422) from error
        return int(height), int(width)
    if not content:
        raise _no_picture("the body is empty. Send a JPEG or a PNG as the body", 400)
    raise _no_picture(
        "the body is neither a JPEG nor a PNG. Send the file itself as the body, not a form", 415
    )


def _no_picture(text: str, status: int) -> RequestError:
    return RequestError(f"{text}.", HTTPStatus(status), reason="bad_image")


def map_picture(result: Result) -> dict[str, Any]:
    """Return the anomaly map as a grey PNG of 16 bits, with the values of its levels 1 and 65535.

    A pixel of the level 0 was not inspected. The value of a level L from 1 on is
    ``low + (high - low) * (L - 1) / 65534``.
    """
    values = result.anomaly_map
    seen = np.isfinite(values)
    low, high = (float(values[seen].min()), float(values[seen].max())) if seen.any() else (0.0, 0.0)
    scale = (_LARGEST_LEVEL - 1) / (high - low) if high > low else 0.0
    levels = np.where(seen, 1 + np.rint((np.where(seen, values, low) - low) * scale), 0).astype(np.uint16)
    return {"low": low, "high": high, "png": _base64(encoded_levels(levels))}


def encoded_levels(levels: NDArray[np.uint16]) -> bytes:
    """Return the content of a grey PNG of 16 bits."""
    is_done, content = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert is_done  # a PNG can hold every array of this type
    return content.tobytes()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
