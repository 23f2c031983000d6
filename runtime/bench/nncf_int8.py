"""Quantise an ONNX file to INT8 through NNCF for OpenVINO. Another Python may run this file as a script.

    python nncf_int8.py MODEL.onnx IMAGES.npy FRAMES.npy INT8.xml

The script imports no FlowEdge, because NNCF is usually installed beside the project that wrote the file. Both arrays
are ``(N, H, W, 3)`` uint8 RGB in the size of the model's input. NNCF calibrates on IMAGES with its own defaults. The
script prints the versions, and the lowest correlation over FRAMES of the INT8 map with the float32 map.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from numpy.typing import NDArray

_Images: TypeAlias = NDArray[np.uint8]


def main() -> None:
    """Write the INT8 model, and print one line of JSON."""
    import nncf

    graph, images, frames, target = sys.argv[1:5]
    core = ov.Core()
    model = core.read_model(graph)
    float32 = _map_of(core, model)
    quantised = nncf.quantize(
        model, nncf.Dataset(list(np.load(images)), _input_of), target_device=nncf.TargetDevice.CPU
    )
    ov.save_model(quantised, target, compress_to_fp16=False)
    int8 = _map_of(core, quantised)
    correlations = [np.corrcoef(float32(one), int8(one))[0, 1] for one in np.load(frames)]
    lowest = float(min(correlations))
    found = {"correlation": lowest if np.isfinite(lowest) else None, "nncf": nncf.__version__}
    print(json.dumps(found | {"openvino": ov.__version__.partition("-")[0]}))


def _input_of(image: _Images) -> NDArray[np.float32]:
    """Return an image as anomalib's files take it, ``(1, 3, H, W)`` in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _map_of(core: ov.Core, model: ov.Model) -> Callable[[_Images], NDArray[np.float64]]:
    """Compile a model, and return a function that gives the anomaly map of an image as one row of numbers."""
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    port = _map_port(compiled)

    def map_of(image: _Images) -> NDArray[np.float64]:
        return np.asarray(compiled(_input_of(image))[port], np.float64).ravel()

    return map_of


def _map_port(compiled: ov.CompiledModel) -> Any:
    """Return the output with the name of anomalib's map, or else the output of floats with the largest image."""
    named = [port for port in compiled.outputs if "anomaly_map" in port.get_names()]
    floats = [port for port in compiled.outputs if port.get_element_type() == ov.Type.f32]
    return max(named or floats, key=lambda port: [side.max_length for side in port.partial_shape][1:][-2:])


if __name__ == "__main__":
    main()
