"""Files that the original implementations wrote are read: a trained model and a record of each repository."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from flowedge.export.checkpoints import (
    permutation_kind,
    read_backbone_weights,
    read_checkpoint,
    with_backbone,
)

BACKBONES = ("resnet18.pth", "efficientnet-b5.pth")


@pytest.fixture(scope="module")
def unpacked(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder for decompressed checkpoints, with a sub-folder for each record."""
    assert shared.is_dir()
    return tmp_path_factory.mktemp("golden")


def unpack(shared: Path, unpacked: Path, record: str) -> tuple[Path, dict[str, object], Path | None]:
    """Return a record's checkpoint, its meta.json, and the extractor's weights if there are any."""
    folder = shared / "golden" / record
    (unpacked / record).mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    for packed in folder.glob("*.xz"):
        files[packed.stem] = unpacked / record / packed.stem
        if not files[packed.stem].exists():
            files[packed.stem].write_bytes(lzma.decompress(packed.read_bytes()))
    weights = next((path for name, path in files.items() if name in BACKBONES), None)
    checkpoint = next(path for name, path in files.items() if name not in BACKBONES)
    return checkpoint, json.loads((folder / "meta.json").read_text()), weights


def blocks(tensors: object, level: int) -> int:
    """Count the blocks of a level."""
    assert isinstance(tensors, dict)
    return sum(name.startswith(f"flow.{level}.") and name.endswith("global_scale") for name in tensors)


def test_the_trained_cflow_is_read_whole(shared: Path) -> None:
    path = shared / "checkpoints" / "cflow_magnetic_tile.ckpt"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.repository, checkpoint.generation, checkpoint.family) == ("anomalib", "2.7", "cflow")
    assert checkpoint.assumed == ()
    assert checkpoint.hyperparameters["backbone"] == "tf_efficientnet_lite0"
    assert checkpoint.hyperparameters["layers"] == ("blocks.2", "blocks.4", "blocks.6")
    assert checkpoint.preprocessing.resize == (256, 256)
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    dropped = [n for n in state if n.startswith("post_processor.") or n.endswith("w_perm_inv")]
    assert len(checkpoint.tensors) == len(state) - len(dropped)
    np.testing.assert_array_equal(
        checkpoint.tensors["flow.2.7.subnet.1.weight"],
        state["model.decoders.2.module_list.7.subnet.2.weight"],
    )


def test_the_official_cflow_record(shared: Path, unpacked: Path) -> None:
    path, meta, _ = unpack(shared, unpacked, "cflow_official")
    checkpoint = read_checkpoint(path)
    assert checkpoint.repository == meta["source"]
    assert checkpoint.hyperparameters["backbone"] == meta["encoder"]
    assert checkpoint.hyperparameters["clamp"] == meta["clamp_alpha"]
    assert checkpoint.hyperparameters["input_size"] == (256, 256)
    assert [blocks(checkpoint.tensors, level) for level in range(3)] == [meta["coupling_blocks"]] * 3
    assert permutation_kind(checkpoint.tensors["flow.0.0.w_perm"]) == "soft"


def test_the_official_fastflow_record(shared: Path, unpacked: Path) -> None:
    path, meta, _ = unpack(shared, unpacked, "fastflow_official")
    checkpoint = read_checkpoint(path)
    assert checkpoint.repository == meta["source"]
    assert checkpoint.hyperparameters["backbone"] == meta["backbone_name"]
    assert checkpoint.hyperparameters["clamp"] == meta["clamp"]
    assert checkpoint.hyperparameters["input_size"] == (meta["input_size"],) * 2
    assert blocks(checkpoint.tensors, 0) == meta["flow_step"]
    assert permutation_kind(checkpoint.tensors["flow.0.0.w_perm"]) == "hard"


def test_the_official_uflow_record(shared: Path, unpacked: Path) -> None:
    path, meta, _ = unpack(shared, unpacked, "uflow_official")
    checkpoint = read_checkpoint(path)
    assert checkpoint.repository == meta["source"]
    assert checkpoint.hyperparameters["backbone"] == meta["backbone"]
    assert checkpoint.hyperparameters["clamp"] == meta["affine_clamping"]
    assert checkpoint.hyperparameters["input_size"] == (meta["input_size"],) * 2
    widths = [checkpoint.tensors[f"flow.{level}.0.global_scale"].size for level in range(3)]
    assert widths == [84, 160, 256]
    assert [blocks(checkpoint.tensors, level) for level in range(3)] == [meta["flow_steps"]] * 3


def test_the_official_msflow_record(shared: Path, unpacked: Path) -> None:
    path, meta, weights = unpack(shared, unpacked, "msflow_official")
    checkpoint = with_backbone(read_checkpoint(path, settings={"input_size": "256"}), weights)
    assert checkpoint.repository == meta["source"]
    assert checkpoint.hyperparameters["backbone"] == meta["extractor"]
    assert checkpoint.hyperparameters["clamp"] == meta["clamp_alpha"]
    assert checkpoint.hyperparameters["pool_type"] == meta["pool_type"]
    assert checkpoint.hyperparameters["top_k"] == meta["top_k"]
    assert [blocks(checkpoint.tensors, level) for level in range(3)] == meta["parallel_blocks"]
    assert [len(checkpoint.tensors[f"fusion.perm.{level}"]) for level in range(3)] == [64, 128, 256]
    assert "backbone.layer3.1.conv2.weight" in checkpoint.tensors


def test_the_official_csflow_record(shared: Path, unpacked: Path) -> None:
    path, meta, weights = unpack(shared, unpacked, "csflow_official")
    checkpoint = with_backbone(read_checkpoint(path), weights)
    assert checkpoint.repository == meta["source"]
    assert checkpoint.hyperparameters["clamp"] == meta["clamp"]
    assert list(checkpoint.hyperparameters["input_size"]) == meta["img_size"]  # type: ignore[call-overload]
    kernels = [checkpoint.tensors[f"flow.{k}.net1.conv_scale0_0.weight"].shape[-1] for k in range(2)]
    assert kernels == meta["kernel_sizes"]
    assert checkpoint.tensors["flow.0.net2.conv_scale0_0.weight"].shape[0] == meta["fc_internal"]
    assert checkpoint.backbone_naming == "efficientnet_pytorch"
    assert checkpoint.permutations is not None
    for k, levels in enumerate(checkpoint.permutations):  # the stored ones are those that the seed gives
        generator = np.random.RandomState(k)
        for level in levels:
            np.testing.assert_array_equal(level, generator.permutation(304))
    assert weights is not None
    assert len(read_backbone_weights(weights)) == 854
