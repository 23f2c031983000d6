"""Run a bundle or a pack inside NVIDIA Triton's Python backend.

Triton runs the file ``1/model.py`` of a model in a process of its own. The file that ``flowedge triton`` writes takes
one of the classes here. A whole model takes frames and gives verdicts. Two halves stand before and after a graph that
another backend of Triton runs.

Source: https://github.com/triton-inference-server/python_backend, "Usage".
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import open_bundle
from flowedge.errors import FlowEdgeError
from flowedge.pack import product_folder
from flowedge.runtime.detector import Detector
from flowedge.runtime.opening.contract import input_of_graph
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.serving.loaded import LoadedModel
from flowedge.runtime.serving.refusal import RequestError
from flowedge.runtime.serving.settings import LimitSettings, ModelSettings
from flowedge.runtime.serving.tensors import (
    IMAGE,
    OUTPUTS,
    PRODUCT,
    check_frames,
    products_of,
    refuse_lost,
    values_of,
)

BUNDLE: Final = "bundle"
"""The folder of a version that holds the bundle or the pack."""


class TritonModel:
    """A model that takes frames and gives verdicts, with the tensors of ``flowedge serve``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle or the pack of the model's version.

        Args:
            args: The facts that Triton gives to a model: its configuration, its folder and its version.

        Raises:
            TritonModelException: The bundle cannot be trusted, or the engine cannot run on this machine.
        """
        self._triton = _backend()
        parameters = _parameters(args)
        engine = parameters.get("engine") or None
        # Triton starts an instance for each GPU and tells its number. A name without a number means the first one.
        if (
            engine is not None
            and args["model_instance_kind"] == "GPU"
            and args["model_instance_device_id"] != "0"
        ):
            engine = f"{engine}:{args['model_instance_device_id']}"
        product = parameters.get("product")
        with _in_words(self._triton):
            self._model = LoadedModel(
                ModelSettings(
                    bundle=_folder(args) / product_folder(product) if product else _folder(args),
                    engine=engine,
                    precision=parameters.get("precision", "fp32"),
                    threads=int(parameters.get("threads", "0")) or None,
                )
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Judge the frames of several requests in one run of the backbone, and answer each request."""
        return _answered(self._triton, requests, self._read, self._judge)

    def finalize(self) -> None:
        """Free the memory."""
        self._model.close()

    def _read(self, request: Any) -> tuple[list[NDArray[np.uint8]], tuple[str | None, ...]]:
        frames = _frames(self._triton, request)
        tensor = self._triton.get_input_tensor_by_name(request, PRODUCT)
        given = None if tensor is None else [bytes(one) for one in tensor.as_numpy().ravel()]
        wished = json.loads(request.parameters() or "{}").get(PRODUCT)
        return frames, products_of(self._model, given, wished, len(frames))

    def _judge(
        self, given: Sequence[tuple[list[NDArray[np.uint8]], tuple[str | None, ...]]]
    ) -> list[list[Any]]:
        frames = [frame for some, _ in given for frame in some]
        products = [product for _, some in given for product in some]
        return _shared_out(self._model.judge(frames, products), [len(some) for some, _ in given])


class _Half:
    """One half of a model, before or after a graph. It has the description of the bundle and its thresholds."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the description of the bundle, and no graph.

        Raises:
            TritonModelException: The bundle cannot be trusted.
        """
        self._triton = _backend()
        with _in_words(self._triton):
            bundle = open_bundle(_folder(args))
            precision = _parameters(args).get("precision", "fp32")
            self._detector = Detector(bundle, open_unproven("null", bundle, precision))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request alone."""
        return [_response(self._triton, request, self._answer) for request in requests]

    def finalize(self) -> None:
        """Free the memory."""
        self._detector.close()

    def _answer(self, request: Any) -> list[Any]:
        """Make the output tensors of a request."""
        raise NotImplementedError


class TritonPreparation(_Half):
    """The half before a graph: it makes the graph's input of frames."""

    def _answer(self, request: Any) -> list[Any]:
        _, image = self._detector.prepare(_frames(self._triton, request))
        name, _ = input_of_graph(self._detector.bundle.manifest)
        return [self._triton.Tensor(f"graph_{name}", np.ascontiguousarray(image))]


class TritonDecision(_Half):
    """The half after a graph: it makes scores, maps and verdicts of the graph's outputs."""

    def _answer(self, request: Any) -> list[Any]:
        frames = _frames(self._triton, request)
        outputs = {
            name: self._triton.get_input_tensor_by_name(request, f"graph_{name}").as_numpy()
            for name in self._detector.engine.output_names
        }
        # Triton gives the one number of each image with a dimension of its own.
        outputs = {
            name: value.reshape(len(frames)) if value.ndim == 2 else value for name, value in outputs.items()
        }
        results = self._detector.judge(frames, outputs, preprocess_ms=0.0, infer_ms=0.0)
        return _tensors(self._triton, request, results)


@contextlib.contextmanager
def _in_words(triton: Any) -> Iterator[None]:
    """Turn an error of FlowEdge into the exception that Triton shows to its operator."""
    try:
        yield
    except (FlowEdgeError, ValueError) as error:
        raise triton.TritonModelException(str(error)) from error


def _backend() -> Any:
    """Return Triton's module, which only Triton's own process has.

    Raises:
        TritonModelException: The environment has NumPy 2.
    """
    triton = importlib.import_module("triton_python_backend_utils")
    # Triton 2.51 sends answers of no bytes where a model has NumPy 2, and reports no error.
    if int(np.__version__.partition(".")[0]) > 1:
        raise triton.TritonModelException(
            f"the environment of this model has NumPy {np.__version__}, of which Triton's Python backend sends empty "
            "answers. Install 'numpy<2' there."
        )
    return triton


def _folder(args: Mapping[str, str]) -> Path:
    return Path(args["model_repository"]) / args["model_version"] / BUNDLE


def _parameters(args: Mapping[str, str]) -> dict[str, str]:
    given = json.loads(args["model_config"]).get("parameters", {})
    return {name: value.get("string_value", "") for name, value in given.items()}


def _frames(triton: Any, request: Any) -> list[NDArray[np.uint8]]:
    """Return the frames of a request.

    Raises:
        RequestError: They are no frames, or are too large.
    """
    image = triton.get_input_tensor_by_name(request, IMAGE).as_numpy()
    check_frames(image, LimitSettings())
    return list(image)


def _answered(
    triton: Any,
    requests: Sequence[Any],
    read: Callable[[Any], Any],
    judge: Callable[[Sequence[Any]], list[list[Any]]],
) -> list[Any]:
    """Judge all requests at once, and each alone where one of them cannot be judged."""
    given: dict[int, Any] = {}
    answers: dict[int, Any] = {}
    for number, request in enumerate(requests):
        try:
            given[number] = read(request)
        except Exception as error:
            answers[number] = _failure(triton, error)
    try:
        judged = dict(zip(given, judge(list(given.values())), strict=True)) if given else {}
    except Exception:
        judged = {}
    for number, one in given.items():

        def tensors(request: Any, number: int = number, one: Any = one) -> list[Any]:
            results = judged[number] if number in judged else judge([one])[0]
            return _tensors(triton, request, results)

        answers[number] = _response(triton, requests[number], tensors)
    return [answers[number] for number in range(len(requests))]


def _shared_out(results: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Give each request as many results as it has frames."""
    rest = iter(results)
    return [[next(rest) for _ in range(count)] for count in counts]


def _tensors(triton: Any, request: Any, results: Sequence[Any]) -> list[Any]:
    """Make the output tensors that a request asks for.

    Raises:
        RequestError: A frame was not inspected, and the request asks for no verdict.
    """
    wanted = [name for name in OUTPUTS if name in request.requested_output_names()]
    refuse_lost(results, wanted)
    return [triton.Tensor(name, _array(values_of(name, results))) for name in wanted]


def _array(values: NDArray[np.float32] | list[str]) -> NDArray[Any]:
    """Give one number or text of each frame a dimension of its own, as Triton wants it."""
    if isinstance(values, list):
        return np.array([[value.encode()] for value in values], dtype=object)
    return values.reshape(-1, 1) if values.ndim == 1 else values


def _response(triton: Any, request: Any, make: Callable[[Any], list[Any]]) -> Any:
    try:
        return triton.InferenceResponse(make(request))
    except Exception as error:
        return _failure(triton, error)


def _failure(triton: Any, error: Exception) -> Any:
    """Make the answer to a request that cannot be judged. It has no verdict."""
    if not isinstance(error, (FlowEdgeError, RequestError, ValueError)):
        triton.Logger.log_error(f"a request has failed: {type(error).__name__}: {error}")
    return triton.InferenceResponse([], triton.TritonError(str(error) or type(error).__name__))
