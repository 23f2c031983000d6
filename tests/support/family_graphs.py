"""Make a small bundle of every family in every precision, with random weights of ordinary size, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowedge.bundle import Bundle, open_bundle, write_bundle
from flowedge.calibration.precision.converted_graph import (
    FILES,
    ConvertedPrecision,
    PrecisionConverter,
    Written,
    tensors_for_conversion,
)
from flowedge.export.graph import ir
from flowedge.export.graph.emit import Flow
from flowedge.export.graph.onnx_export import onnx_from_model
from flowedge.export.graph.passes import lower
from flowedge.manifest import GraphFile, LevelInfo, PrecisionName
from support.observed import observe
from support.oracles.scores import answer_from_levels
from support.random_flows import (
    random_cflow,
    random_csflow,
    random_fastflow,
    random_msflow,
    random_uflow,
    settled,
)
from support.tiny_bundle import tiny_manifest

FAMILIES: Final[dict[str, Callable[[int], ir.FlowModel]]] = {
    "cflow": random_cflow,
    "fastflow": random_fastflow,
    "uflow": random_uflow,
    "msflow": random_msflow,
    "csflow": random_csflow,
}
PRECISIONS: Final[tuple[PrecisionName, ...]] = ("fp32", "fp16", "bf16", "int8-gpu", "int8-cpu")


class Features(nn.Module):
    """Gives features in place of a backbone, by one convolution per level and a bilinear resize."""

    def __init__(self, model: ir.FlowModel) -> None:
        super().__init__()
        torch.manual_seed(0)
        pooled = 2 if model.family == "msflow" else 1
        self.sizes = [(pooled * level.height, pooled * level.width) for level in model.levels]
        self.convs = nn.ModuleList(nn.Conv2d(3, level.feature_channels, 1) for level in model.levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [
            nn.functional.interpolate(conv(image), size, mode="bilinear", align_corners=True)
            for conv, size in zip(self.convs, self.sizes, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FamilyBundle:
    """A bundle, ``images`` ``(N, 3, H, W)``, and the float64 answers of the network before the passes, by output."""

    bundle: Bundle
    images: NDArray[np.float32]
    expected: dict[str, NDArray[np.float64]]


def read_family_bundle(family: str, folder: Path) -> FamilyBundle:
    """Read what `write_family_bundle` left in the folder."""
    with np.load(folder / "expected.npz") as stored:
        expected = dict(stored)
    images = np.load(folder / "images.npy")
    return FamilyBundle(bundle=open_bundle(folder / f"{family}.flowedge"), images=images, expected=expected)


def write_family_bundle(family: str, folder: Path) -> None:
    """Write ``FAMILY.flowedge`` with a graph of every precision, ``images.npy`` and ``expected.npz`` to the folder."""
    model = settled(FAMILIES[family](0))
    height, width = model.image_size
    images = np.random.default_rng(7).standard_normal((3, 3, height, width)).astype(np.float32)
    expected = reference_answers(model, images)
    graph = folder / f"{family}.onnx"
    onnx_from_model(lower(model), Features(model).eval(), graph)
    fp32 = GraphFile(precision="fp32", file="model.onnx", opset=18, scoring=model.scoring)
    typed = converted_graphs(graph, fp32, images, folder)
    manifest = msgspec.structs.replace(
        tiny_manifest(image_size=model.image_size),
        family=model.family,
        levels=tuple(
            LevelInfo(channels=lv.channels, height=lv.height, width=lv.width) for lv in model.levels
        ),
        graphs=(fp32, *(written.graph for written in typed.values())),
    )
    files: dict[str, Path | bytes] = {"model.onnx": graph}
    files |= {written.graph.file: folder / f"{family}.{name}.onnx" for name, written in typed.items()}
    write_bundle(folder / f"{family}.flowedge", manifest, files)
    np.save(folder / "images.npy", images)
    stored: dict[str, Any] = dict(expected)  # numpy's stubs know only a flag by name
    np.savez(folder / "expected.npz", **stored)


def converted_graphs(
    graph: Path, fp32: GraphFile, images: NDArray[np.float32], folder: Path
) -> dict[ConvertedPrecision, Written]:
    """Write ``folder/STEM.PRECISION.onnx`` for every precision, with ranges from the images ``(N, 3, H, W)``."""
    ranges = observe(graph, tensors_for_conversion(graph, tuple(FILES)).tensors, images[:, None])
    converter = PrecisionConverter(graph, fp32, ranges)
    return {
        name: converter.write(name, tuple(converter.blocks(name)), folder / f"{graph.stem}.{name}.onnx")
        for name in FILES
    }


def reference_answers(model: ir.FlowModel, images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Compute the levels of the flow before the passes, and maps and scores as the papers write them."""
    backbone = Features(model).double().eval()
    with torch.no_grad():
        levels = Flow(model).double()(backbone(torch.from_numpy(images).double()))
        answer = answer_from_levels(levels, model.family, model.scoring, model.image_size)
    found = {"score": answer.score, "anomaly_map": answer.anomaly_map}
    found |= {f"level_{number}": level for number, level in enumerate(levels)}
    if answer.anomaly_map_mul is not None:
        found["anomaly_map_mul"] = answer.anomaly_map_mul
    return {name: value.numpy() for name, value in found.items()}
