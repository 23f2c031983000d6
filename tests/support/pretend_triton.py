"""A stand-in for the module that Triton's own process gives to a Python model, and the calls that Triton makes."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError(Exception):
    """The error of one request."""


class InferenceResponse:
    """The answer to one request."""

    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self.outputs = {one.name(): one.as_numpy() for one in output_tensors}
        self.error = error


class Request:
    """One request."""

    def __init__(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = ("score", "verdict", "anomaly_map", "problem"),
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.inputs, self._outputs = inputs, list(outputs)
        self._parameters = json.dumps(parameters) if parameters else ""

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def parameters(self) -> str:
        return self._parameters


def pretend_triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install the stand-in, and return the list that takes the errors that models log."""
    logged: list[str] = []

    def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
        return Tensor(name, request.inputs[name]) if name in request.inputs else None

    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        TritonError=TritonError,
        TritonModelException=type("TritonModelException", (Exception,), {}),
        get_input_tensor_by_name=get_input_tensor_by_name,
        Logger=types.SimpleNamespace(log_error=logged.append),
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return logged


def config_of(model: Path) -> Any:
    """Read the configuration of a model by Triton's own message."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def loaded_model(model: Path, *, device: int | None = None) -> Any:
    """Load the Python model in a folder, as Triton does."""
    spec = importlib.util.spec_from_file_location("model", model / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    config = json_format.MessageToDict(config_of(model), preserving_proto_field_name=True)
    made.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(model),
            "model_version": "1",
            "model_instance_kind": "CPU" if device is None else "GPU",
            "model_instance_device_id": str(device or 0),
        }
    )
    return made


def answer(model: Any, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Send one request to a model, and return its outputs."""
    (response,) = model.execute([Request(inputs)])
    assert response.error is None, response.error
    return dict(response.outputs)


def stacked(texts: Sequence[str]) -> NDArray[Any]:
    """Return texts as a model gets them."""
    return np.array([[text.encode()] for text in texts], dtype=object)
