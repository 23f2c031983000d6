"""A real Triton and flowedge serve give one client the same answers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray

from flowedge.runtime.serving.settings import BatchSettings, ModelSettings, ServerSettings
from flowedge.runtime.serving.triton_files import TritonSettings
from flowedge.runtime.serving.triton_repository import write_repository
from support.served import Served, served, some_frames, tiny_folder
from support.triton_server import ENVIRONMENT, TritonServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ENVIRONMENT / ".complete").exists(),
        reason="a real Triton is in the environment that make test-all makes",
    ),
]
CPU = "onnxruntime-cpu"
OUTPUTS = ("score", "verdict", "anomaly_map", "problem")
# The wheel has no backend but that of Python, so a few lines of it run the graph of the ensemble.
GRAPH_MODEL = """import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        file = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = triton.get_input_tensor_by_name(request, "image").as_numpy()
        names = [one.name for one in self.session.get_outputs()]
        values = dict(zip(names, self.session.run(names, {"image": image})))
        wanted = request.requested_output_names()
        return triton.InferenceResponse([triton.Tensor(name, values[name]) for name in wanted])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("triton_server"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Served]:
    models = [
        ModelSettings(bundle=folder / name, engine=CPU, threads=1)
        for name in ("bottle.flowedge", "line.flowedgepack")
    ]
    with served(models, server=ServerSettings(port=0), batch=BatchSettings(workers=1)) as running:
        yield running


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[TritonServer]:
    repository = folder / "repository"
    python: dict[str, Any] = {"engine": CPU, "threads": 1, "python": ENVIRONMENT}
    write_repository(folder / "bottle.flowedge", repository, TritonSettings(**python))
    write_repository(folder / "line.flowedgepack", repository, TritonSettings(**python))
    names = write_repository(
        folder / "bottle.flowedge",
        repository,
        TritonSettings(name="parts", backend="onnxruntime", python=ENVIRONMENT),
    )
    graph = repository / names[1]
    config = (graph / "config.pbtxt").read_text().replace('default_model_filename: "model.onnx"\n', "")
    own = f'backend: "python"\nparameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{ENVIRONMENT}" }} }}\n'
    (graph / "config.pbtxt").write_text(
        config.replace('platform: "onnxruntime_onnx"\nbackend: "onnxruntime"\n', own)
    )
    (graph / "1" / "model.py").write_text(GRAPH_MODEL)
    with TritonServer(ENVIRONMENT, repository, folder, "bottle", "line", *names) as server:
        yield server


def asked(address: str, model: str, frames: NDArray[np.uint8], **options: Any) -> dict[str, list[Any]]:
    client = triton.InferenceServerClient(address)
    image = triton.InferInput("image", frames.shape, "UINT8")
    image.set_data_from_numpy(frames, binary_data=options.pop("binary", True))
    inputs = [image]
    if (product := options.pop("product", None)) is not None:
        name = triton.InferInput("product", [len(frames), 1], "BYTES")
        name.set_data_from_numpy(np.array([[product.encode()]] * len(frames), dtype=object))
        inputs.append(name)
    wanted = [triton.InferRequestedOutput(name, binary_data=True) for name in OUTPUTS]
    found = client.infer(model, inputs, outputs=wanted, **options)
    client.close()
    return {name: found.as_numpy(name).tolist() for name in OUTPUTS}


@pytest.mark.parametrize(
    ("model", "served_as", "options"),
    [
        ("bottle", "bottle", {}),
        ("bottle", "bottle", {"binary": False}),
        ("bottle", "bottle", {"request_compression_algorithm": "gzip"}),
        ("bottle", "bottle", {"response_compression_algorithm": "deflate"}),
        ("line", "line", {"product": "screw"}),
        ("line", "line", {"parameters": {"product": "cable"}}),
        ("parts", "bottle", {}),
    ],
)
def test_one_client_gets_the_same_answers_from_both(
    ours: Served, theirs: TritonServer, model: str, served_as: str, options: dict[str, Any]
) -> None:
    frames = some_frames(3)
    from_triton = asked(theirs.address, model, frames, **dict(options))
    from_us = asked(ours.address, served_as, frames, **dict(options))
    assert from_triton == from_us
    assert {verdict for (verdict,) in from_us["verdict"]} <= {b"ok", b"anomalous"}


def test_both_describe_the_tensors_alike(ours: Served, theirs: TritonServer) -> None:
    for model in ("bottle", "line"):
        mine = triton.InferenceServerClient(ours.address).get_model_metadata(model)
        other = triton.InferenceServerClient(theirs.address).get_model_metadata(model)
        assert (mine["inputs"], mine["outputs"]) == (other["inputs"], other["outputs"])


def test_a_wrong_request_is_refused_by_both(ours: Served, theirs: TritonServer) -> None:
    grey = np.zeros((1, 5, 5, 4), np.uint8)
    for address in (ours.address, theirs.address):
        with pytest.raises(triton.InferenceServerException, match="3"):
            asked(address, "bottle", grey)
        with pytest.raises(triton.InferenceServerException, match="nut"):
            asked(address, "line", some_frames(1), product="nut")


def test_the_environment_of_triton_has_numpy_1() -> None:
    program = "import numpy; print(numpy.__version__)"
    found = subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("1.")
