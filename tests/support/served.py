"""Run a real server in this process, and send it raw requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flowedge.bundle import write_bundle
from flowedge.export.pack import pack_bundles
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames
from flowedge.runtime.result import Result
from flowedge.runtime.serving.batching import Batcher
from flowedge.runtime.serving.server import ModelServer
from flowedge.runtime.serving.settings import ModelSettings, ServerSettings, ServeSettings
from support.tiny_bundle import IMAGE_SIZE, tiny_answer, tiny_manifest, tiny_model, write_tiny_bundle

THRESHOLDS = Thresholds(
    image=Threshold(value=-0.155, method="manual"), pixel=Threshold(value=-0.3, method="manual")
)


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        text = self.json["error"]
        assert isinstance(text, str)
        return text


class Served:
    """A running server with the means of a test."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.port = server.port
        self.address = f"127.0.0.1:{server.port}"

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request, with no header but those that are named and ``Host`` and ``Content-Length``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def raw(self) -> socket.socket:
        """Open a connection for bytes."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def metric(self, sample: str) -> float:
        """Return a number of Prometheus by its name and labels as they stand in the text."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def batcher(self, name: str = "bottle") -> Batcher:
        batcher = self.server.site.models.entries[name].batcher
        assert batcher is not None
        return batcher


class Gate:
    """Holds the runs of a model, and counts the frames that were judged."""

    def __init__(self, batcher: Batcher) -> None:
        self.judged: list[int] = []
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._model = batcher.model
        self._judge = batcher.model.judge

    def __enter__(self) -> Gate:
        def held(frames: Sequence[NDArray[Any]], products: Sequence[str | None]) -> list[Result]:
            self.entered.release()
            assert self._open.wait(60)
            self.judged.append(len(frames))
            return self._judge(frames, products)

        self._model.judge = held  # type: ignore[method-assign]
        return self

    def open(self) -> None:
        """Let the runs go on."""
        self._open.set()

    def __exit__(self, *error: object) -> None:
        self._open.set()
        self._model.judge = self._judge  # type: ignore[method-assign]


def tiny_models(folder: Path) -> tuple[ModelSettings, ...]:
    """Write one tiny bundle with the name ``bottle``."""
    write_tiny_bundle(folder / "bottle.flowedge", thresholds=THRESHOLDS)
    return (ModelSettings(bundle=folder / "bottle.flowedge"),)


def tiny_folder(folder: Path) -> Path:
    """Write the tiny bundle ``bottle`` and a pack of the products ``cable`` and ``screw``, and return the folder."""
    tiny_models(folder)
    write_tiny_pack(folder, ("cable", "screw"))
    return folder


def write_tiny_pack(folder: Path, names: Sequence[str]) -> Path:
    """Write a pack of products that share the tiny backbone and differ in the scale of their levels."""
    bundles = {}
    for scale, name in enumerate(names, 1):
        model = tiny_model()
        for node in model.graph.node:
            node.name = f"backbone/{node.op_type}" if node.op_type == "Conv" else f"flow/{node.output[0]}"
            if node.output[0] == "squares":
                node.output[0] = "unscaled"
        at = next(number for number, node in enumerate(model.graph.node) if node.output[0] == "unscaled")
        scaling = helper.make_node("Mul", ["unscaled", "scale"], ["squares"], name="flow/scaling")
        model.graph.node.insert(at + 1, scaling)
        model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale"))
        height, width = IMAGE_SIZE
        features = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, height // 2, width // 2])
        model.graph.value_info.append(features)
        manifest = tiny_manifest(thresholds=THRESHOLDS)
        frames = synthetic_frames(manifest.preprocessing)
        preprocess = Preprocessor(manifest.preprocessing)
        answer = tiny_answer(np.stack([preprocess(frame) for frame in frames]))
        levels = {name: scale * answer[name] for name in ("level_0", "level_1")}
        files = {"model.onnx": model.SerializeToString(), **files_of_selftest(frames, levels)}
        bundles[name] = write_bundle(folder / f"{name}.made", manifest, files).path
    return pack_bundles(bundles, folder / "line.flowedgepack").pack.path


@contextlib.contextmanager
def served(models: Sequence[ModelSettings], **tables: Any) -> Iterator[Served]:
    """Run a server on a free port.

    Args:
        models: The models.
        tables: Further settings.
    """
    server = tables.pop("server", ServerSettings(port=0))
    with ModelServer(ServeSettings(models=tuple(models), server=server, **tables)) as running:
        yield Served(running)


def some_frames(count: int, seed: int = 0, size: tuple[int, int] = (40, 60)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def infer_body(frames: NDArray[np.uint8], **message: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an inference request with binary data."""
    tensor = {
        "name": "image",
        "shape": list(frames.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": frames.size},
    }
    head = json.dumps({"inputs": [tensor], **message}).encode()
    return head + frames.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
