"""Write small real bundles of a FastFlow with one convolution as its flow, and compute the expected answers."""

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
    GraphFile,
    LevelInfo,
    Manifest,
    PrecisionName,
    Preprocessing,
    ScoreMaxima,
    Scoring,
    Source,
    StoredFile,
    Thresholds,
)
from flowedge.runtime.frames.preprocess import Preprocessor
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames

IMAGE_SIZE = (16, 24)
CHANNELS = 4
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def tiny_weight(seed: int = 0) -> NDArray[np.float32]:
    """Return the weight of the convolution, ``(4, 3, 2, 2)``, which has stride 2."""
    return np.random.default_rng(seed).normal(size=(CHANNELS, 3, 2, 2)).astype(np.float32)


def tiny_answer(image: NDArray[Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Compute the answers of the tiny graph to ``(N, 3, H, W)`` in NumPy, in the image's dtype."""
    n, _, height, width = image.shape
    patches = image.reshape(n, 3, height // 2, 2, width // 2, 2)
    z = np.einsum("nciajb,ocab->noij", patches, tiny_weight(seed))
    level_0 = (z**2).mean(axis=1, keepdims=True)
    level_1 = level_0.reshape(n, 1, height // 4, 2, width // 4, 2).mean(axis=(3, 5))
    likelihoods = [_upsampled(np.exp(level / -2), size) for size, level in ((2, level_0), (4, level_1))]
    anomaly_map = -(likelihoods[0] + likelihoods[1]) / 2
    return {
        "score": anomaly_map.max(axis=(1, 2, 3)),
        "anomaly_map": anomaly_map,
        "level_0": level_0,
        "level_1": level_1,
    }


def _upsampled(level: NDArray[Any], factor: int) -> NDArray[Any]:
    """Upsample bilinearly by PyTorch's ``align_corners=False``."""
    rows, columns = (
        np.stack(
            [np.interp((np.arange(factor * n) + 0.5) / factor - 0.5, np.arange(n), one) for one in np.eye(n)]
        )
        for n in level.shape[2:]
    )
    result: NDArray[Any] = np.einsum("nchw,hi,wj->ncij", level, rows, columns).astype(level.dtype)
    return result


def tiny_model(
    *,
    image_size: tuple[int, int] = IMAGE_SIZE,
    takes_frames: bool = False,
    repeats_energies: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Make the graph that computes ``tiny_answer``. Both sides of ``image_size`` are multiples of 4.

    With ``takes_frames`` the graph takes uint8 frames of that size and normalises them by ``tiny_manifest``. With
    ``repeats_energies`` the map repeats each value of the finest level four times, so its values have no limit.
    """
    height, width = image_size
    preprocess = [
        helper.make_node("Cast", ["frame"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["levels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["image"]),
    ]
    likelihoods = [
        *(
            node
            for level, scales in (("level_0", "twice"), ("level_1", "four_times"))
            for node in (
                helper.make_node("Mul", [level, "minus_half"], [f"{level}_log"]),
                helper.make_node("Exp", [f"{level}_log"], [f"{level}_likelihood"]),
                helper.make_node(
                    "Resize", [f"{level}_likelihood", "", scales], [f"{level}_up"], mode="linear"
                ),
            )
        ),
        helper.make_node("Add", ["level_0_up", "level_1_up"], ["likelihoods"]),
        helper.make_node("Mul", ["likelihoods", "minus_half"], ["anomaly_map"]),
    ]
    repeated = [
        helper.make_node(
            "Resize",
            ["level_0", "", "twice"],
            ["anomaly_map"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    ]
    nodes = [
        *(preprocess if takes_frames else ()),
        helper.make_node("Conv", ["image", "weight"], ["z"], strides=[2, 2]),
        helper.make_node("Mul", ["z", "z"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "channel_axis"], ["level_0"], keepdims=1),
        helper.make_node("AveragePool", ["level_0"], ["level_1"], kernel_shape=[2, 2], strides=[2, 2]),
        *(repeated if repeats_energies else likelihoods),
        helper.make_node("ReduceMax", ["anomaly_map", "map_axes"], ["score"], keepdims=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "weight": tiny_weight(seed),
        "channel_axis": np.array([1], np.int64),
        "minus_half": np.array(-0.5, np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "four_times": np.array([1, 1, 4, 4], np.float32),
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
    """Make a manifest for ``tiny_model``. By default frames are resized to ``image_size``."""
    height, width = image_size
    fixed = ScoreMaxima(level_max=(-0.5, -0.25), map_max=2.0) if family == "cflow" else None
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
                scoring=Scoring(
                    normalisation="fixed_reference"
                    if fixed
                    else "per_image"
                    if family == "msflow"
                    else "none",
                    score_maxima=fixed,
                    csflow_map="product" if family == "csflow" else None,
                    top_fraction=0.03 if family == "msflow" else None,
                ),
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
    """Write a whole bundle with the tiny graph, which is the same for every precision, and one file in a folder."""
    manifest = tiny_manifest(
        image_size=image_size,
        precisions=precisions,
        thresholds=thresholds,
        preprocessing=preprocessing,
        takes_frames=takes_frames,
    )
    model = tiny_model(image_size=image_size, takes_frames=takes_frames, seed=seed).SerializeToString()
    files: dict[str, Path | bytes] = {graph.file: model for graph in manifest.graphs}
    files |= tiny_selftest(manifest, seed)
    return write_bundle(target, manifest, {**files, "selftest/frame.bin": b"frame"})


def tiny_selftest(manifest: Manifest, seed: int = 0) -> dict[str, bytes]:
    """Return the two files of a self-test for ``tiny_manifest``, with the answers of ``tiny_answer``."""
    frames = synthetic_frames(manifest.preprocessing, manifest.frame_size)
    preprocess = Preprocessor(manifest.preprocessing)
    answer = tiny_answer(np.stack([preprocess(frame) for frame in frames]), seed)
    return files_of_selftest(frames, {name: answer[name] for name in answer if name.startswith("level")})
