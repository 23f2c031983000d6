"""Bundles of products: real flows with random weights behind one backbone, each with a self-test."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from flowedge.bundle import Bundle, write_bundle
from flowedge.export.graph.onnx_export import FrameInput, onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.manifest import GraphFile, LevelInfo, Threshold, Thresholds
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames
from support.random_flows import random_cflow, settled
from support.tiny_bundle import tiny_manifest

FRAME_SIZE = (40, 50)


class Patches(nn.Module):
    """A backbone of one strided convolution per level, to which the flow's own constants are added at once."""

    def __init__(self, levels: list[tuple[int, int, int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(
            nn.Conv2d(3, channels, stride, stride)
            for channels, *sides in levels
            for stride in [(sides[0], sides[1])]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        return [conv(image) for conv in self.convs]


def write_patches_bundle(target: Path, *, takes_frames: bool = False) -> Bundle:
    """Write a CFLOW on `Patches`, without a self-test. With ``takes_frames`` its frames have 40x50 pixels."""
    model = settled(random_cflow(0))
    height, width = model.image_size
    network = Patches([(lv.feature_channels, height // lv.height, width // lv.width) for lv in model.levels])
    manifest = tiny_manifest(image_size=model.image_size)
    size = FRAME_SIZE if takes_frames else None
    frames = None if size is None else FrameInput(size=size, preprocessing=manifest.preprocessing)
    graph = target.with_suffix(".onnx")
    onnx_from_model(lower(model), network.eval(), graph, frames=frames)
    manifest = msgspec.structs.replace(
        manifest,
        family=model.family,
        levels=tuple(
            LevelInfo(channels=lv.channels, height=lv.height, width=lv.width) for lv in model.levels
        ),
        frame_size=size,
        graphs=(GraphFile(precision="fp32", file="model.onnx", opset=18, scoring=model.scoring),),
    )
    return write_bundle(target, manifest, {"model.onnx": graph})


def write_product(
    source: Bundle,
    target: Path,
    *,
    flow: int = 0,
    backbone: int = 0,
    threshold: float = 0.5,
    mean: float | None = None,
    precisions: tuple[str, ...] = ("fp32",),
) -> Bundle:
    """Write a bundle whose network is another than that of a bundle, with a self-test that ONNX Runtime answers.

    Args:
        source: The bundle whose graphs are changed.
        target: The folder to make.
        flow: Changes the weights of the flow. Products with another number are other products.
        backbone: Changes the weights of the backbone. Products with the same number share it.
        threshold: The image threshold.
        mean: The mean of the first channel in the preprocessing.
        precisions: The graphs to write.
    """
    manifest = source.manifest
    preprocessing = manifest.preprocessing
    if mean is not None:
        preprocessing = msgspec.structs.replace(preprocessing, mean=(mean, *preprocessing.mean[1:]))
    fitted = Thresholds(image=Threshold(value=threshold, method="manual"))
    manifest = msgspec.structs.replace(
        manifest,
        preprocessing=preprocessing,
        graphs=tuple(
            msgspec.structs.replace(graph, thresholds=fitted)
            for graph in manifest.graphs
            if graph.precision in precisions
        ),
    )
    files: dict[str, Path | bytes] = {
        graph.file: changed_graph(source.path / graph.file, flow, backbone) for graph in manifest.graphs
    }
    frames = synthetic_frames(preprocessing, manifest.frame_size)
    session = ort.InferenceSession(files[manifest.graph("fp32").file], providers=["CPUExecutionProvider"])
    names = [f"level_{number}" for number in range(len(manifest.levels))]
    levels = session.run(names, {session.get_inputs()[0].name: GraphInput(manifest)(frames)})
    answers = {name: np.asarray(level) for name, level in zip(names, levels, strict=True)}
    return write_bundle(target, manifest, {**files, **files_of_selftest(frames, answers)})


def changed_graph(path: Path, flow: int, backbone: int) -> bytes:
    """Return a graph with other weights of the flow and of the backbone, as the seeds tell."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        seed = {"flow": flow, "backbone": backbone}.get(tensor.name.partition(".")[0], 0)
        if (
            seed
            and len(tensor.dims) > 1
            and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        ):
            weights = numpy_helper.to_array(tensor)
            changed = (weights * np.float32(1 + seed / 64)).astype(weights.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    content: bytes = model.SerializeToString()
    return content
