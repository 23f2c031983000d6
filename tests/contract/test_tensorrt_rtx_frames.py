"""TensorRT for RTX parses and builds graphs that take frames: uint8 at the input, and no Resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowedge.manifest import Preprocessing, ResizeMethod
from support.preprocess_graph import write_preprocess

trt: Any = pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install tensorrt-rtx"
)
nvidia_build: Any = pytest.importorskip("flowedge.runtime.engines.nvidia_build")


@pytest.mark.parametrize("method", ["float_bilinear", "pil_lanczos", "cv2_bilinear"])
def test_every_way_to_resize_becomes_an_engine(method: ResizeMethod, tmp_path: Path) -> None:
    preprocessing = Preprocessing(
        resize=(64, 96), method=method, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    graph = write_preprocess(preprocessing, (240, 333), tmp_path / "preprocess.onnx")
    builder, network = nvidia_build.parsed(trt, graph, "tensorrt-rtx")
    taken = network.get_input(0)
    assert (taken.dtype, tuple(taken.shape)) == (trt.uint8, (-1, 240, 333, 3))
    config = builder.create_builder_config()
    nvidia_build.set_batches(builder, network, config, (1, 2, 4))
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert nvidia_build.serialized(trt, builder, network, config) is not None
