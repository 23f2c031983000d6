"""Make the files of the models of Triton from a bundle or a pack.

With the backend ``python`` one model does everything, on any engine of FlowEdge. With ``onnxruntime`` and ``tensorrt``
Triton itself runs the graph, and an ensemble puts a model before it, which prepares frames, and one behind it, which
decides. The tensors are those of ``flowedge serve``, so that a client runs unchanged against both.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from flowedge.bundle import Bundle, open_bundle
from flowedge.bundle_files import pack_around
from flowedge.errors import FlowEdgeError
from flowedge.manifest import Manifest
from flowedge.pack import Pack, open_pack
from flowedge.runtime.detector import Detector
from flowedge.runtime.device.engine_file import DamagedError, graph_hash, is_engine_file, read_engine
from flowedge.runtime.opening.contract import input_of_graph, outputs_of_graph
from flowedge.runtime.opening.engine import AUTO, ENGINES, engine_spec
from flowedge.runtime.opening.selftest import read_selftest
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.serving.settings import ModelName
from flowedge.runtime.serving.tensors import IMAGE, PRODUCT
from flowedge.runtime.serving.triton_config import TritonTensor, Word, config_text, keyed, tensor_of
from flowedge.runtime.serving.triton_models import BUNDLE
from flowedge.runtime.settings import Settings

TritonBackend: TypeAlias = Literal["python", "onnxruntime", "tensorrt"]
Files: TypeAlias = Mapping[str, "bytes | Path"]
"""The files of a model by their paths in its folder: bytes, or a file or folder to copy."""

_MODEL: Final = "from flowedge.runtime.serving.triton_models import {name} as TritonPythonModel\n"
_PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


class TritonSettings(Settings, frozen=True, kw_only=True):
    """The choices of a model repository.

    Attributes:
        name: The name of the model. Without a name it is that of the folder without its ending.
        backend: The backend of Triton that runs the graph.
        engine: The engine of FlowEdge in the backend ``python``. Without a name, the first that opens there is taken.
        precision: The precision of the graph.
        threads: The number of CPU threads of one inference. Without a number the engine decides.
        gpu: True lets the graph run on GPUs.
        instances: The number of instances of the graph, on each GPU where it runs on GPUs.
        batch: The most frames in one run.
        delay_ms: The longest time in ms that a frame waits for others.
        python: The folder of the environment in which the Python models run, with FlowEdge in it. Without a folder it
            is the Python that Triton finds.
        plan: The TensorRT engine of the backend ``tensorrt``, as ``flowedge build`` or ``trtexec`` has written it.
    """

    name: ModelName | None = None
    backend: TritonBackend = "python"
    engine: str | None = None
    precision: str = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    gpu: bool = False
    instances: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    delay_ms: Annotated[float, msgspec.Meta(ge=0, le=10000)] = 2.0
    python: Path | None = None
    plan: Path | None = None


class ModelFiles:
    """The models of one bundle or pack."""

    def __init__(self, source: Path, settings: TritonSettings) -> None:
        """Open the bundle or the pack, and compare the choices with it.

        Raises:
            BundleError: The bundle cannot be trusted.
            FlowEdgeError: A choice does not suit the backend.
        """
        self._settings, self._source = settings, source
        self._name = settings.name or ""
        self._pack: Pack | None = None
        self._folder, self._product = source, ""
        around = pack_around(source)
        if around is None:
            self._bundle = open_bundle(source)
        else:
            # A product needs the backbone of its pack.
            self._folder, self._product = around
            pack = open_pack(around[0])
            self._bundle = pack.product(around[1] or pack.names[0])
            if not around[1]:
                self._pack = pack
        self._check()

    def all(self) -> dict[str, Files]:
        """Return the files of each model. The model that clients call comes last."""
        if self._settings.backend == "python":
            return {self._name: self._whole()}
        prepare, graph, decide = (f"{self._name}-{part}" for part in ("prepare", "graph", "decide"))
        return {
            prepare: self._half("TritonPreparation", prepare, [self._image()], self._graph_inputs()),
            graph: self._graph(graph),
            decide: self._half(
                "TritonDecision", decide, [self._image(), *self._graph_outputs()], self._outputs()
            ),
            self._name: self._ensemble(prepare, graph, decide),
        }

    def _check(self) -> None:
        settings = self._settings
        if settings.backend == "python":
            if settings.plan is not None:
                raise FlowEdgeError(
                    "--plan is for --backend tensorrt. The backend python takes --engine tensorrt."
                )
            self._check_opens()
            return
        if pack_around(self._source) is not None:
            raise FlowEdgeError(
                f"{self._source} belongs to a pack, whose backbone and heads are several graphs. Take --backend python."
            )
        if settings.engine is not None:
            raise FlowEdgeError(
                "--engine is for --backend python. Triton runs the graph of another backend itself."
            )
        if (settings.plan is None) == (settings.backend == "tensorrt"):
            raise FlowEdgeError(
                "--backend tensorrt needs --plan with the engine that flowedge build has made on the server's GPU, and "
                "no other backend takes one."
            )
        self._bundle.graph_path(settings.precision)

    def _check_opens(self) -> None:
        """Check that an engine may have a graph of the precision, so that the server does not find out first.

        Raises:
            BundleError: The bundle has no graph of the precision for any device of the engine.
            EngineUnavailableError: There is no engine of the name.
        """
        engine, precision = self._settings.engine, self._settings.precision
        specs = tuple(ENGINES.values()) if engine is None else (engine_spec(engine),)
        if precision == AUTO:
            return
        have = {graph.precision for graph in self._manifest.graphs}
        if have.isdisjoint(self._manifest.precision_on(spec.device, precision) for spec in specs):
            self._manifest.graph(precision)

    # The tensors.

    def _image(self) -> TritonTensor:
        return TritonTensor(IMAGE, "TYPE_UINT8", (*self._sides, 3))

    @property
    def _manifest(self) -> Manifest:
        return self._bundle.manifest

    @property
    def _sides(self) -> tuple[int, int]:
        return self._manifest.frame_size or (-1, -1)

    def _inputs(self) -> list[TritonTensor]:
        if self._pack is None:
            return [self._image()]
        return [self._image(), TritonTensor(PRODUCT, "TYPE_STRING", (1,), is_optional=True)]

    def _outputs(self) -> list[TritonTensor]:
        return [
            TritonTensor("score", "TYPE_FP32", (1,)),
            TritonTensor("verdict", "TYPE_STRING", (1,)),
            TritonTensor("anomaly_map", "TYPE_FP32", self._sides),
            TritonTensor("problem", "TYPE_STRING", (1,)),
        ]

    def _graph_inputs(self) -> list[TritonTensor]:
        name, spec = input_of_graph(self._manifest)
        return [tensor_of(f"graph_{name}", spec)]

    def _graph_outputs(self) -> list[TritonTensor]:
        # The models of an ensemble exchange a number of each frame with a dimension of its own.
        found = [tensor_of(f"graph_{name}", spec) for name, spec in outputs_of_graph(self._manifest).items()]
        return [one._replace(is_number=False) for one in found]

    # The models.

    def _whole(self) -> Files:
        settings = self._settings
        parameters = {"precision": settings.precision}
        if settings.engine is not None:
            parameters["engine"] = settings.engine
        if settings.threads is not None:
            parameters["threads"] = str(settings.threads)
        if self._product:
            parameters["product"] = self._product
        frame = read_selftest(self._bundle).frames[0]
        warm_up: dict[str, Any] = {IMAGE: _stored(self._image(), frame.shape, IMAGE)}
        files: dict[str, bytes | Path] = {f"warmup/{IMAGE}": frame.tobytes()}
        if self._pack is not None:
            name = self._pack.names[0].encode()
            files[f"warmup/{PRODUCT}"] = struct.pack("<I", len(name)) + name
            warm_up[PRODUCT] = {"data_type": Word("TYPE_STRING"), "dims": [1], "input_data_file": PRODUCT}
        config = self._config(
            self._name,
            self._inputs(),
            self._outputs(),
            **self._batching(),
            **self._instances(),
            **self._python(parameters),
            model_warmup=_warm_up(warm_up),
        )
        return {**self._python_files("TritonModel", config), **files}

    def _half(self, kind: str, name: str, inputs: list[TritonTensor], outputs: list[TritonTensor]) -> Files:
        config = self._config(
            name, inputs, outputs, **self._python({"precision": self._settings.precision}), **_cpu(1)
        )
        return self._python_files(kind, config)

    def _graph(self, name: str) -> Files:
        settings, bundle = self._settings, self._bundle
        input_name, spec = input_of_graph(self._manifest)
        taken = tensor_of(input_name, spec)
        given = [tensor_of(one, spec) for one, spec in outputs_of_graph(self._manifest).items()]
        image = _prepared(bundle, settings.precision)
        config: dict[str, Any] = {
            **self._batching(),
            **self._instances(),
            "model_warmup": _warm_up({taken.name: _stored(taken, image.shape, "input")}),
        }
        files: dict[str, bytes | Path] = {"warmup/input": image.tobytes()}
        if settings.plan is not None:
            files["1/model.plan"] = _plan(settings.plan, bundle, settings)
        else:
            graph = bundle.graph_path(settings.precision)
            # The graph names the file of its weights, so both keep their names.
            config["default_model_filename"] = graph.name
            stored = graph.relative_to(bundle.path).as_posix()
            for file in bundle.manifest.files:
                if file.path.startswith(stored):
                    files[f"1/{Path(file.path).name}"] = bundle.path / file.path
            if settings.threads is not None:
                config["parameters"] = keyed(
                    {"intra_op_thread_count": {"string_value": str(settings.threads)}}
                )
        files["config.pbtxt"] = self._config(name, [taken], given, backend=settings.backend, **config)
        return files

    def _ensemble(self, prepare: str, graph: str, decide: str) -> Files:
        (made,), answers = self._graph_inputs(), self._graph_outputs()

        def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
            maps = {"input_map": keyed(inputs), "output_map": keyed(outputs)}
            return {"model_name": model, "model_version": -1, **maps}

        plain = {one.name.removeprefix("graph_"): one.name for one in answers}
        own = {one.name: one.name for one in self._outputs()}
        steps = [
            step(prepare, {IMAGE: IMAGE}, {made.name: made.name}),
            step(graph, {made.name.removeprefix("graph_"): made.name}, plain),
            step(decide, {IMAGE: IMAGE, **{name: name for name in plain.values()}}, own),
        ]
        config = self._config(
            self._name,
            self._inputs(),
            self._outputs(),
            platform="ensemble",
            ensemble_scheduling={"step": steps},
        )
        # A version needs a folder, and a folder that is copied to an object store needs a file.
        return {"config.pbtxt": config, "1/README": b"An ensemble has no file of its own.\n"}

    # The parts of a configuration.

    def _config(
        self, name: str, inputs: list[TritonTensor], outputs: list[TritonTensor], **more: Any
    ) -> bytes:
        if "backend" in more and more["backend"] in _PLATFORMS:
            more = {"platform": _PLATFORMS[more["backend"]], **more}
        message = {
            "name": name,
            "max_batch_size": self._settings.batch,
            "input": [one.message for one in inputs],
            "output": [one.message for one in outputs],
            **more,
        }
        return config_text(message).encode()

    def _batching(self) -> dict[str, Any]:
        delay = round(self._settings.delay_ms * 1000)
        return {"dynamic_batching": {"max_queue_delay_microseconds": delay}}

    def _instances(self) -> dict[str, Any]:
        count = self._settings.instances
        return (
            {"instance_group": [{"kind": Word("KIND_GPU"), "count": count}]}
            if self._settings.gpu
            else _cpu(count)
        )

    def _python(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        given = dict(parameters)
        if self._settings.python is not None:
            given["EXECUTION_ENV_PATH"] = str(self._settings.python.absolute())
        return {
            "backend": "python",
            "parameters": keyed({key: {"string_value": value} for key, value in given.items()}),
        }

    def _python_files(self, kind: str, config: bytes) -> dict[str, bytes | Path]:
        return {
            "config.pbtxt": config,
            "1/model.py": _MODEL.format(name=kind).encode(),
            f"1/{BUNDLE}": self._folder,
        }


def _cpu(count: int) -> dict[str, Any]:
    return {"instance_group": [{"kind": Word("KIND_CPU"), "count": count}]}


def _stored(tensor: TritonTensor, shape: tuple[int, ...], file: str) -> dict[str, Any]:
    """Describe an input of a warm-up run, which Triton reads from a file."""
    return {"data_type": Word(tensor.type), "dims": list(shape), "input_data_file": file}


def _warm_up(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "self-test", "batch_size": 1, "inputs": keyed(inputs)}]


def _prepared(bundle: Bundle, precision: str) -> np.ndarray:
    """Return the graph's input for the first frame of the self-test, without the dimension of the batch."""
    with Detector(bundle, open_unproven("null", bundle, precision)) as detector:
        _, image = detector.prepare(list(read_selftest(bundle).frames[:1]))
    return np.ascontiguousarray(image[0])


def _plan(file: Path, bundle: Bundle, settings: TritonSettings) -> bytes:
    """Read a TensorRT engine.

    Raises:
        FlowEdgeError: It cannot be read, or was built from another graph or for smaller batches.
    """
    try:
        if not is_engine_file(file):
            return file.read_bytes()
        facts, plan = read_engine(file)
    except (OSError, DamagedError) as error:
        raise FlowEdgeError(
            f"{file} is no engine of TensorRT: {error}. Build it again: flowedge build."
        ) from error
    if facts.engine.partition(":")[0] != "tensorrt" or facts.graph != graph_hash(bundle, settings.precision):
        raise FlowEdgeError(
            f"{file} is of {facts.engine}, and not of TensorRT and of the graph of {bundle.path} in "
            f"{settings.precision}. Build one: flowedge build {bundle.path} --engine tensorrt --precision "
            f"{settings.precision}"
        )
    smallest, _, largest = facts.batches
    if smallest > 1 or largest < settings.batch:
        raise FlowEdgeError(
            f"{file} was built for {smallest} to {largest} frames, and --batch {settings.batch} needs 1 to "
            f"{settings.batch}. Give the same number to flowedge build --batch 1,1,{settings.batch}."
        )
    return plan
