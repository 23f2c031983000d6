"""Describe the tensors of a model, and judge the frames of an inference request.

The input ``image`` is ``(N, H, W, 3)`` UINT8, RGB, of any size that the detector takes. The outputs are ``score``
``(N, 1)``, ``verdict`` ``(N, 1)``, ``problem`` ``(N, 1)`` and ``anomaly_map`` ``(N, H, W)`` over the frame. Triton has
no output without a dimension beside that of the batch, so a number of a frame has one of size 1 here as there.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.manifest import Manifest
from flowedge.runtime.result import Result
from flowedge.runtime.serving.loaded import LoadedModel
from flowedge.runtime.serving.messages import Answer, InferRequest, infer_answer
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.settings import BatchSettings, LimitSettings
from flowedge.text import shown

IMAGE: Final = "image"
PRODUCT: Final = "product"
_FLOATS: Final = ("score", "anomaly_map")
OUTPUTS: Final = ("score", "verdict", "anomaly_map", "problem")


def metadata_of(name: str, model: LoadedModel) -> dict[str, Any]:
    """Return the metadata of a model, as the protocol gives them."""
    inputs = [{"name": IMAGE, "datatype": "UINT8", "shape": [-1, *_frame_sides(model.manifest), 3]}]
    if model.products:
        inputs.append({"name": PRODUCT, "datatype": "BYTES", "shape": [-1, 1]})
    return {
        "name": name,
        "versions": ["1"],
        "platform": "flowedge",
        "inputs": inputs,
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "verdict", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "anomaly_map", "datatype": "FP32", "shape": [-1, *_frame_sides(model.manifest)]},
            {"name": "problem", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "parameters": _facts(model),
    }


def config_of(name: str, model: LoadedModel, batch: BatchSettings) -> dict[str, Any]:
    """Return the configuration of a model, with the keys of Triton's."""
    sides = [str(side) for side in _frame_sides(model.manifest)]
    inputs: list[dict[str, Any]] = [{"name": IMAGE, "data_type": "TYPE_UINT8", "dims": [*sides, "3"]}]
    if model.products:
        inputs.append({"name": PRODUCT, "data_type": "TYPE_STRING", "dims": ["1"], "optional": True})
    return {
        "name": name,
        "platform": "flowedge",
        "backend": "flowedge",
        "max_batch_size": model.batch_of(batch.largest)[1],
        "input": inputs,
        "output": [
            {"name": "score", "data_type": "TYPE_FP32", "dims": ["1"]},
            {"name": "verdict", "data_type": "TYPE_STRING", "dims": ["1"]},
            {"name": "anomaly_map", "data_type": "TYPE_FP32", "dims": sides},
            {"name": "problem", "data_type": "TYPE_STRING", "dims": ["1"]},
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": round(batch.delay_ms * 1000)},
        "instance_group": [{"count": batch.workers or model.lanes}],
        "parameters": {key: {"string_value": str(value)} for key, value in _facts(model).items()},
    }


def _frame_sides(manifest: Manifest) -> tuple[int, int]:
    return manifest.frame_size or (-1, -1)


def _facts(model: LoadedModel) -> dict[str, str]:
    manifest = model.manifest
    facts = {
        "family": manifest.family,
        "backbone": manifest.backbone,
        "engine": model.engine,
        "precision": model.precision,
        "image": "RGB, of the size of the bundle's frames"
        if manifest.frame_size
        else "RGB, of any size; the frames of one request have one size",
        "verdicts": "ok, anomalous, unknown, not_inspected",
    }
    if model.products:
        facts["products"] = ",".join(model.products)
    return facts


class Inference:
    """An inference request that was checked against its model.

    Attributes:
        frames: The frames, ``(H, W, 3)`` uint8 each.
        products: The product of each frame.
        answer_bytes: The number of bytes that the answer has at least.
    """

    def __init__(self, name: str, model: LoadedModel, request: InferRequest, limits: LimitSettings) -> None:
        """Check the request.

        Args:
            name: The name of the model.
            model: The model.
            request: The request.
            limits: The limits.

        Raises:
            RequestError: An input or an output is not one of the model's, or exceeds a limit.
        """
        self._head = {"model_name": name, "model_version": "1"}
        if request.message.id:
            self._head["id"] = request.message.id
        self._outputs = request.outputs or dict.fromkeys(OUTPUTS, request.binary)
        unknown = [one for one in self._outputs if one not in OUTPUTS]
        if unknown:
            raise RequestError(
                f"unexpected inference output {shown(unknown[0])} for the model {name}, which gives: "
                f"{', '.join(OUTPUTS)}."
            )
        given = dict(request.tensors)
        image, product = given.pop(IMAGE, None), given.pop(PRODUCT, None)
        if given:
            raise RequestError(
                f"unexpected inference input {shown(next(iter(given)))} for the model {name}, which takes: "
                f"{', '.join([IMAGE, PRODUCT] if model.products else [IMAGE])}."
            )
        if not isinstance(image, np.ndarray):
            raise RequestError(f"the input {IMAGE} of the datatype UINT8 is missing.")
        check_frames(image, limits)
        self.frames: list[NDArray[np.uint8]] = list(image)
        self.products = products_of(model, product, request.message.parameters.get(PRODUCT), len(image))
        self.answer_bytes = (
            4 * image.shape[0] * image.shape[1] * image.shape[2] if "anomaly_map" in self._outputs else 0
        )

    def load(self, number: int) -> NDArray[np.uint8]:
        """Return a frame by its number."""
        return self.frames[number]

    def finish(self, results: list[Result]) -> Answer:
        """Make the answer.

        A frame that was not inspected has the score NaN. Its verdict tells that it was not inspected. A client that
        asks for no verdict could take the score for a good one, so the client gets an error.

        Raises:
            RequestError: A frame was not inspected, and the request asks for no verdict.
        """
        refuse_lost(results, self._outputs)
        made: list[tuple[str, NDArray[np.float32] | list[str], tuple[int, ...]]] = []
        for name in OUTPUTS:
            if name in self._outputs:
                values = values_of(name, results)
                shape = (
                    values.shape if isinstance(values, np.ndarray) and values.ndim > 1 else (len(values), 1)
                )
                made.append((name, values, shape))
        return infer_answer(self._head, made, self._outputs)


def check_frames(image: NDArray[np.uint8], limits: LimitSettings) -> None:
    """Check the shape of the input ``image``.

    Raises:
        RequestError: The array is not ``(N, H, W, 3)``, has no pixel, or has frames that are too large.
    """
    if image.ndim != 4 or image.shape[3] != 3 or image.size == 0:
        raise RequestError(
            f"the input {IMAGE} must have the shape [N, H, W, 3] with at least one pixel, got {list(image.shape)}."
        )
    check_pixels(image.shape[1], image.shape[2], limits)


def check_pixels(height: int, width: int, limits: LimitSettings) -> None:
    """Check the number of pixels of a frame.

    Raises:
        RequestError: There are too many.
    """
    if height * width > limits.megapixels * 1e6:
        raise RequestError(
            f"a frame has {width}x{height} pixels, and {limits.megapixels:g} million are allowed. Cut it into pieces.",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            reason="too_large",
        )


def refuse_lost(results: Sequence[Result], outputs: Container[str]) -> None:
    """Refuse to answer without the verdict of a frame that was not inspected.

    Args:
        results: The results of the request's frames.
        outputs: The names of the outputs that the request asks for.

    Raises:
        RequestError: A frame was not inspected, and the request asks for no verdict.
    """
    lost = [number for number, result in enumerate(results) if result.verdict == "not_inspected"]
    if lost and "verdict" not in outputs:
        raise RequestError(
            f"the frame {lost[0]} of the request was not inspected: {results[lost[0]].problem}. Ask for the output "
            "verdict, which tells it for each frame.",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            reason="not_inspected",
        )


def values_of(name: str, results: Sequence[Result]) -> NDArray[np.float32] | list[str]:
    """Return the elements of an output: a number or a text of each frame, or the maps ``(N, H, W)``."""
    if name == "verdict":
        return [result.verdict for result in results]
    if name == "problem":
        return [result.problem for result in results]
    if name == "score":
        scores = [math.nan if one.verdict == "not_inspected" else one.score for one in results]
        return np.array(scores, np.float32)
    return np.stack([result.anomaly_map for result in results])


def products_of(
    model: LoadedModel, tensor: NDArray[np.uint8] | list[bytes] | None, parameter: Any, count: int
) -> tuple[str | None, ...]:
    """Return the product of each frame: by the input, by the parameter, or none.

    Raises:
        RequestError: A product is not one of the model's, or there is not one for each frame.
    """
    if tensor is None:
        if parameter is not None and not isinstance(parameter, str):
            raise RequestError(f"the parameter {PRODUCT} is a text, got {shown(parameter)}.")
        return (model.product_of(parameter),) * count
    if parameter is not None:
        raise RequestError(f"the request has an input and a parameter {PRODUCT}. Send one of the two.")
    if not isinstance(tensor, list) or len(tensor) not in (1, count):
        raise RequestError(
            f"the input {PRODUCT} must have the datatype BYTES and one element, or one for each of the {count} frames."
        )
    names = [model.product_of(one.decode("utf-8", "backslashreplace")) for one in tensor]
    return tuple(names) if len(names) == count else (names[0],) * count
