"""Write a bundle whose backbone is a chain of hand-made convolutions, one block each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flowedge.bundle import Bundle, write_bundle
from flowedge.calibration.gate_report import GateLimits
from flowedge.manifest import Preprocessing
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames
from support.tiny_bundle import tiny_manifest, tiny_model

SIZE: Final = (48, 64)
LIMITS: Final = GateLimits(
    map_correlation=0.98,
    map_error=3.0,
    rank_agreement=0.0,
    flips=1.0,
    image_auroc=1.0,
    pixel_auroc=1.0,
    aupro=1.0,
)
"""The limits of a gate on a chain of convolutions, whose scores tell nothing about defects."""

PLAIN = Preprocessing(resize=SIZE, method="float_bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One convolution without padding. A ReLU follows all but the last."""

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: int = 1
    place: str = "backbone"


def random_layers(seed: int, channels: Sequence[int] = (4, 4, 4, 4)) -> list[Layer]:
    """Make a first convolution of 2x2 pixels and stride 2, and then products over the channels."""
    rng = np.random.default_rng(seed)
    layers = []
    for number, (inputs, outputs) in enumerate(zip([3, *channels], channels, strict=False)):
        side = 1 if number else 2
        weight = rng.normal(size=(outputs, inputs, side, side)) / np.sqrt(inputs * side * side)
        bias = rng.uniform(0.2, 0.6, outputs)
        layers.append(
            Layer(f"l{number}", weight.astype(np.float32), bias.astype(np.float32), stride=1 if number else 2)
        )
    return layers


def block_model(layers: Sequence[Layer], image_size: tuple[int, int] = SIZE) -> onnx.ModelProto:
    """Make a graph of blocks ``PLACE/NAME``, followed by the mean square over the channels in float32."""
    height, width = image_size
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {
        "channel_axis": np.array([1], np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "map_axes": np.array([1, 2, 3], np.int64),
    }
    tensor = "image"
    for layer in layers:
        constants |= {f"{layer.name}.weight": layer.weight, f"{layer.name}.bias": layer.bias}
        inputs = [tensor, f"{layer.name}.weight", f"{layer.name}.bias"]
        tensor = f"{layer.name}.out"
        strides = [layer.stride] * 2
        nodes.append(
            helper.make_node(
                "Conv", inputs, [tensor], name=f"{layer.place}/{layer.name}/Conv", strides=strides
            )
        )
        if layer is not layers[-1]:
            relu = f"{layer.name}.relu"
            nodes.append(helper.make_node("Relu", [tensor], [relu], name=f"{layer.place}/{layer.name}/Relu"))
            tensor = relu
    nodes += [
        helper.make_node("Mul", [tensor, tensor], ["squares"], name="map/Mul"),
        helper.make_node("ReduceMean", ["squares", "channel_axis"], ["level_0"], name="map/Mean", keepdims=1),
        helper.make_node(
            "AveragePool", ["level_0"], ["level_1"], name="map/Pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node(
            "Resize",
            ["level_0", "", "scales"],
            ["anomaly_map"],
            name="map/Resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("ReduceMax", ["anomaly_map", "map_axes"], ["score"], name="map/Max", keepdims=0),
    ]
    shapes: dict[str, list[str | int | None]] = {
        "image": ["N", layers[0].weight.shape[1], height, width],
        "score": ["N"],
        "anomaly_map": ["N", 1, height, width],
        "level_0": ["N", 1, height // 2, width // 2],
        "level_1": ["N", 1, height // 4, width // 4],
    }
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "blocks",
        values[:1],
        values[1:],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_block_bundle(target: Path, layers: Sequence[Layer]) -> Bundle:
    """Write a bundle that is a FastFlow by its manifest, so that its map needs no score maxima."""
    return write_bundle(
        target, tiny_manifest(image_size=SIZE), {"model.onnx": block_model(layers).SerializeToString()}
    )


def write_with_selftest(target: Path, layers: Sequence[Layer], *, with_selftest: bool = True) -> Bundle:
    """Write a bundle of blocks whose map is that of a FastFlow, with a self-test that its fp32 graph passes."""
    model, tail = block_model(layers), tiny_model(image_size=SIZE)
    del model.graph.node[-2:]  # The map and the score of the blocks.
    begin = next(n for n, node in enumerate(tail.graph.node) if node.output[0] == "level_0_log")
    model.graph.node.extend(tail.graph.node[begin:])
    have = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(one for one in tail.graph.initializer if one.name not in {*have, "weight"})
    onnx.checker.check_model(model)
    manifest = tiny_manifest(image_size=SIZE, preprocessing=PLAIN)
    files: dict[str, Path | bytes] = {"model.onnx": model.SerializeToString()}
    if with_selftest:
        frames = synthetic_frames(PLAIN)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = ["level_0", "level_1"]
        answers: Any = session.run(names, {"image": GraphInput(manifest)(frames)})
        files |= files_of_selftest(frames, dict(zip(names, answers, strict=True)))
    return write_bundle(target, manifest, files)


def write_photographs(folder: Path, count: int, *, seed: int = 0) -> tuple[Path, ...]:
    """Write pictures of soft coloured clouds at the graph's own size, with grey levels of at most 200."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        coarse = rng.uniform(60, 160, (6, 8, 3)).astype(np.float32)
        fine = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        noise = rng.normal(scale=8, size=fine.shape)
        paths.append(folder / f"{number:02}.png")
        assert cv2.imwrite(str(paths[-1]), np.clip(fine + noise, 0, 200).astype(np.uint8))
    return tuple(paths)
