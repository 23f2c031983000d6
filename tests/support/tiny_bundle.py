"""Small real bundles: a graph of one convolution that honours the contract, and what it must answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flowedge.bundle import Bundle, write_bundle
from flowedge.manifest import (
    SCHEMA,
    Family,
    FixedReference,
    GraphFile,
    LevelInfo,
    Manifest,
    PrecisionName,
    Preprocessing,
    Scoring,
    Source,
    StoredFile,
    Thresholds,
)

IMAGE_SIZE = (16, 24)
CHANNELS = 4
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def tiny_weight(seed: int = 0) -> NDArray[np.float32]:
    """The convolution's weight, ``(4, 3, 2, 2)``, stride 2."""
    return np.random.default_rng(seed).normal(size=(CHANNELS, 3, 2, 2)).astype(np.float32)


def tiny_answer(image: NDArray[Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """What the tiny graph computes, in NumPy and the image's dtype, for ``(N, 3, H, W)``."""
    n, _, height, width = image.shape
    patches = image.reshape(n, 3, height // 2, 2, width // 2, 2)
    z = np.einsum("nciajb,ocab->noij", patches, tiny_weight(seed))
    level_0 = (z**2).mean(axis=1, keepdims=True)
    level_1 = level_0.reshape(n, 1, height // 4, 2, width // 4, 2).mean(axis=(3, 5))
    anomaly_map = level_0.repeat(2, axis=2).repeat(2, axis=3)
    return {
        "score": anomaly_map.max(axis=(1, 2, 3)),
        "anomaly_map": anomaly_map,
        "level_0": level_0,
        "level_1": level_1,
    }


def tiny_model(
    *, image_size: tuple[int, int] = IMAGE_SIZE, takes_frames: bool = False, seed: int = 0
) -> onnx.ModelProto:
    """The graph of ``tiny_answer``; both sides of ``image_size`` are multiples of 4.

    With ``takes_frames`` it takes uint8 frames of that size and normalises them as ``tiny_manifest`` says.
    """
    height, width = image_size
    preprocess = [
        helper.make_node("Cast", ["frame"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["levels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["image"]),
    ]
    nodes = [
        *(preprocess if takes_frames else ()),
        helper.make_node("Conv", ["image", "weight"], ["z"], strides=[2, 2]),
        helper.make_node("Mul", ["z", "z"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "channel_axis"], ["level_0"], keepdims=1),
        helper.make_node("AveragePool", ["level_0"], ["level_1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "Resize",
            ["level_0", "", "scales"],
            ["anomaly_map"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("ReduceMax", ["anomaly_map", "map_axes"], ["score"], keepdims=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "weight": tiny_weight(seed),
        "channel_axis": np.array([1], np.int64),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "map_axes": np.array([1, 2, 3], np.int64),
    }
    if takes_frames:
        constants["white"] = np.array(255, np.float32)
        constants |= {name: np.array(value, np.float32)[:, None, None] for name, value in IMAGENET.items()}
    shapes: dict[str, list[str | int | None]] = {
        "image": ["N", 3, height, width],
        "score": ["N"],
        "anomaly_map": ["N", 1, height, width],
        "level_0": ["N", 1, height // 2, width // 2],
        "level_1": ["N", 1, height // 4, width // 4],
    }
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, ["N", height, width, 3])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [frame] if takes_frames else values[:1],
        values[1:],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def tiny_manifest(
    *,
    family: Family = "fastflow",
    image_size: tuple[int, int] = IMAGE_SIZE,
    precisions: tuple[PrecisionName, ...] = ("fp32",),
    thresholds: Thresholds | None = None,
    preprocessing: Preprocessing | None = None,
    takes_frames: bool = False,
    files: tuple[StoredFile, ...] = (),
) -> Manifest:
    """A manifest that fits ``tiny_model``; frames are resized to ``image_size`` unless told otherwise."""
    height, width = image_size
    fixed = FixedReference(level_max=(-0.5, -0.25), map_max=2.0) if family == "cflow" else None
    return Manifest(
        schema=SCHEMA,
        flowedge_version="0.1.0",
        created="2025-01-02T03:04:05Z",
        family=family,
        source=Source(repository="anomalib", generation="2.7", file="tiny.ckpt", sha256="0" * 64),
        backbone="resnet18",
        image_size=image_size,
        levels=(
            LevelInfo(channels=CHANNELS, height=height // 2, width=width // 2),
            LevelInfo(channels=CHANNELS, height=height // 4, width=width // 4),
        ),
        preprocessing=preprocessing
        or Preprocessing(
            resize=image_size,
            method="float_bilinear",
            mean=IMAGENET["mean"],
            std=IMAGENET["std"],
        ),
        graphs=tuple(
            GraphFile(
                precision=precision,
                file="model.onnx" if precision == "fp32" else f"model.{precision}.onnx",
                opset=18,
                scoring=Scoring(normalisation="fixed_reference" if fixed else "none", reference=fixed),
                thresholds=thresholds or Thresholds(),
            )
            for precision in precisions
        ),
        frame_size=image_size if takes_frames else None,
        files=files,
    )


def write_tiny_bundle(
    target: Path,
    *,
    image_size: tuple[int, int] = IMAGE_SIZE,
    precisions: tuple[PrecisionName, ...] = ("fp32",),
    thresholds: Thresholds | None = None,
    preprocessing: Preprocessing | None = None,
    takes_frames: bool = False,
    seed: int = 0,
) -> Bundle:
    """A whole bundle with the tiny graph (the same one under every precision) and one file in a folder."""
    manifest = tiny_manifest(
        image_size=image_size,
        precisions=precisions,
        thresholds=thresholds,
        preprocessing=preprocessing,
        takes_frames=takes_frames,
    )
    model = tiny_model(image_size=image_size, takes_frames=takes_frames, seed=seed).SerializeToString()
    files: dict[str, Path | bytes] = {graph.file: model for graph in manifest.graphs}
    return write_bundle(target, manifest, {**files, "selftest/frame.bin": b"frame"})
