"""Time foreign models, fed with random numbers: ONNX files on ONNX Runtime, and on OpenVINO also OpenVINO's own files.

Both libraries get the settings that are best for one image at a time, so that FlowEdge is compared with the most that
anyone can get from the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowedge.errors import EngineUnavailableError, FlowEdgeError
from flowedge.packages import pip_install
from flowedge.runtime.bench.protocol import Job, Started

_Feed: TypeAlias = dict[str, NDArray[Any]]

_FLOATS: Final = MappingProxyType(
    {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(double)": np.float64,
        # OpenVINO's names.
        "f32": np.float32,
        "f16": np.float16,
        "f64": np.float64,
    }
)

# OpenVINO by itself computes float32 models in bfloat16 where it finds that faster. A row states its precision.
_HINTS: Final = MappingProxyType({"fp32": "f32", "bf16": "bf16", "int8": "f32"})

ON_ONNXRUNTIME: Final = "onnxruntime-cpu"
ON_OPENVINO: Final = "openvino"


def peer_of(job: Job) -> OnnxRuntimePeer | OpenVinoPeer:
    """Load a foreign model on the library that the job names, and run it once.

    Raises:
        FlowEdgeError: The library is not installed, or cannot load or run the model.
    """
    return OpenVinoPeer(job) if job.engine == ON_OPENVINO else OnnxRuntimePeer(job)


class OnnxRuntimePeer:
    """A foreign ONNX file on ONNX Runtime's CPU."""

    def __init__(self, job: Job) -> None:
        start = time.perf_counter()
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            raise _missing("onnxruntime", "ort") from error
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # FlowEdge's engine sets this too, and denormal numbers would slow the peer alone.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if job.threads is not None:
            options.intra_op_num_threads = job.threads
        self._path = job.path
        try:
            self._session = ort.InferenceSession(job.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a foreign file may break anything
            raise _problem("ONNX Runtime cannot load", job.path, error) from error
        loaded = time.perf_counter()
        self.work(1)()
        self.started = _started(job, ort.__version__, start, loaded)

    def work(self, batch: int) -> Callable[[], object]:
        feed = _random_feed(
            self._path,
            {entry.name: (entry.type, entry.shape) for entry in self._session.get_inputs()},
            batch,
        )

        def run() -> object:
            try:
                return self._session.run(None, feed)
            except Exception as error:
                raise _problem("ONNX Runtime cannot run", self._path, error) from error

        return run


class OpenVinoPeer:
    """A foreign model on OpenVINO's CPU, compiled for each batch by itself."""

    def __init__(self, job: Job) -> None:
        start = time.perf_counter()
        try:
            import openvino as ov
        except ModuleNotFoundError as error:
            raise _missing("openvino", "openvino") from error
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[job.precision],
            # FlowEdge's engine sets this too, and denormal numbers would slow the peer alone.
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        if job.threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = job.threads
        self._path, self._core = job.graph or job.path, ov.Core()
        try:
            self._model = self._core.read_model(self._path)
        except Exception as error:  # a foreign file may break anything
            raise _problem("OpenVINO cannot load", self._path, error) from error
        run = self.work(1)
        loaded = time.perf_counter()
        run()
        self.started = _started(job, ov.__version__, start, loaded)

    def work(self, batch: int) -> Callable[[], object]:
        inputs = self._model.inputs
        try:
            shapes = {entry: [_side(side) for side in entry.partial_shape] for entry in inputs}
            names = {entry: entry.get_any_name() for entry in inputs}
        except Exception as error:  # an input without a name or a rank
            raise _problem("OpenVINO cannot load", self._path, error) from error
        feed = _random_feed(
            self._path,
            {names[entry]: (entry.element_type.get_type_name(), shape) for entry, shape in shapes.items()},
            batch,
        )
        try:
            sized = self._model.clone()
            sized.reshape({name: list(array.shape) for name, array in feed.items()})
            request = self._core.compile_model(sized, "CPU", self._options).create_infer_request()
        except Exception as error:
            raise _problem("OpenVINO cannot load", self._path, error) from error

        def run() -> object:
            try:
                return request.infer(feed, share_inputs=True)
            except Exception as error:
                raise _problem("OpenVINO cannot run", self._path, error) from error

        return run


def has_bfloat16() -> bool:
    """Return True where OpenVINO computes in bfloat16 on this processor. Without OpenVINO the answer is False."""
    try:
        import openvino as ov
    except ModuleNotFoundError:
        return False
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def image_size_of(peer: Path) -> tuple[int, int]:
    """Return the height and the width of the images that a foreign model takes.

    Raises:
        EngineUnavailableError: OpenVINO is not installed or cannot read the file, or the file takes something else.
    """
    try:
        import openvino as ov
    except ModuleNotFoundError as error:
        raise _missing("openvino", "openvino") from error
    try:
        shapes = [
            [_side(side) for side in entry.partial_shape] for entry in ov.Core().read_model(peer).inputs
        ]
    except Exception as error:  # a foreign file may break anything
        raise _problem("OpenVINO cannot load", str(peer), error) from error
    match shapes:
        case [[_, 3, int(height), int(width)]]:
            return height, width
    raise EngineUnavailableError(
        f"{peer} takes {shapes}, but images are one tensor of (N, 3, H, W) whose height and width are fixed. "
        "Export it so."
    )


def _side(dimension: Any) -> int | None:
    return dimension.get_length() if dimension.is_static else None


def _random_feed(path: str, inputs: Mapping[str, tuple[str, Sequence[Any]]], batch: int) -> _Feed:
    """Make random inputs.

    Args:
        path: The file of the model.
        inputs: The type and the shape of each input by its name. A side that is no number is open.
        batch: The number of images.

    Raises:
        FlowEdgeError: The inputs are no floats, or leave more open than the number of images.
    """
    rng = np.random.default_rng(0)
    feed: _Feed = {}
    for name, (kind, shape) in inputs.items():
        # A side without a number is free. Only the batch may be free, because no other size can be guessed.
        first, *sides = shape or [None]
        if isinstance(first, int) and first != batch:
            raise FlowEdgeError(f"{path} takes a batch of {first} only, not of {batch}.")
        fixed = [side for side in sides if isinstance(side, int)]
        if kind not in _FLOATS or len(fixed) < len(sides):
            raise FlowEdgeError(
                f"{path} takes {name} {kind} {list(shape)}: a peer is fed with random floats, so "
                "its inputs must be floats whose sides are fixed but for the batch. Export it so."
            )
        feed[name] = rng.random((batch, *fixed)).astype(_FLOATS[kind])
    return feed


def _started(job: Job, version: str, start: float, loaded: float) -> Started:
    return Started(
        engine=job.engine,
        version=version,
        device="cpu",
        load_ms=1000 * (loaded - start),
        first_ms=1000 * (time.perf_counter() - loaded),
        graph=job.path,
        counted=job.path,
        precision=job.precision,
    )


def _missing(package: str, extra: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"a peer runs on {package}, which is not installed. Install it with: {pip_install(extra)}"
    )


def _problem(what: str, path: str, error: Exception) -> EngineUnavailableError:
    return EngineUnavailableError(f"{what} {path}: {' '.join(str(error).split())}.")
