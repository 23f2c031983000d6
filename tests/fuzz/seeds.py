"""Make the valid inputs that the fuzz target mutates: checkpoints, bundles and pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from flowedge.bundle import write_bundle
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.opening.selftest import files_of_selftest, synthetic_frames
from support.command_line import flowedge
from support.small_cflow import small_cflow_checkpoint
from support.tiny_bundle import tiny_answer, tiny_manifest, tiny_model

PICTURE_SIZE = (24, 36)
"""Height and width of every seed picture, in pixels."""


def write_seeds(folder: Path) -> None:
    """Write ``checkpoints/``, ``bundles/`` and ``pictures/`` into an empty folder."""
    for name in ("checkpoints", "bundles", "pictures"):
        (folder / name).mkdir(parents=True)
    _write_checkpoints(folder / "checkpoints")
    _write_bundles(folder / "bundles", folder / "checkpoints" / "anomalib.ckpt")
    _write_pictures(folder / "pictures")


def _write_checkpoints(folder: Path) -> None:
    """Write one checkpoint for each reader of the file format: archive, old format, and plain state dict."""
    saved = small_cflow_checkpoint()
    torch.save(saved, folder / "anomalib.ckpt")
    torch.save(saved["state_dict"], folder / "plain.ckpt")
    torch.save(saved, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(
        {name: one.contiguous() for name, one in saved["state_dict"].items()}, folder / "plain.safetensors"
    )


def _write_bundles(folder: Path, checkpoint: Path) -> None:
    """Write a bundle of a few hundred bytes that is quick to judge with, and a real one of a small CFLOW."""
    manifest = tiny_manifest(thresholds=Thresholds(image=Threshold(value=3.0, method="manual")))
    frames = synthetic_frames(manifest.preprocessing)
    answers = tiny_answer(GraphInput(manifest)(frames).astype(np.float64))
    levels = {name: value.astype(np.float32) for name, value in answers.items() if name.startswith("level")}
    model = tiny_model().SerializeToString()
    write_bundle(
        folder / "tiny.flowedge", manifest, {"model.onnx": model, **files_of_selftest(frames, levels)}
    )
    done = flowedge("export", checkpoint, "-o", folder / "cflow.flowedge")
    if done.status != 0:
        raise RuntimeError(done.stderr)


def _write_pictures(folder: Path) -> None:
    """Write one photograph-like picture in every format that FlowEdge reads, in the variants that cameras write."""
    pixels = picture_pixels()
    image = Image.fromarray(pixels)
    grey = image.convert("L")
    plain: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "baseline.jpg": (image, {"quality": 90}),
        "progressive.jpg": (image, {"quality": 90, "progressive": True}),
        "grey.jpg": (grey, {"quality": 90, "restart_marker_blocks": 2}),
        "colour.png": (image, {}),
        "palette.png": (image.quantize(16), {}),
        "grey.png": (grey, {}),
        "colour.bmp": (image, {}),
        "raw.tif": (image, {}),
        "lzw.tif": (image, {"compression": "tiff_lzw"}),
        "deflate.tif": (grey, {"compression": "tiff_adobe_deflate"}),
        "lossy.webp": (image, {}),
        "lossless.webp": (image, {"lossless": True}),
        "camera.ppm": (image, {}),
        "camera.pgm": (grey, {}),
    }
    for name, (picture, options) in plain.items():
        picture.save(folder / name, **options)
    (folder / "opencv.jpg").write_bytes(cv2.imencode(".jpg", pixels[:, :, ::-1])[1].tobytes())


def picture_pixels() -> NDArray[np.uint8]:
    """``(24, 36, 3)`` uint8, RGB: smooth shades with grain, so that every coder has something to code."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(40, 215, (4, 6, 3)).astype(np.uint8)
    height, width = PICTURE_SIZE
    shades = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-8, 9, shades.shape)
    pixels: NDArray[np.uint8] = np.clip(shades + grain, 0, 255).astype(np.uint8)
    return pixels


def read_seed(folder: Path, kind: str) -> dict[str, bytes]:
    """The bytes of each seed file of a kind, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / kind).iterdir()) if path.is_file()}


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a seed bundle to where a case may change it."""
    shutil.copytree(source, target)
