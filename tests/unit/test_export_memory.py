"""An export frees the weights that it has written, so that a large model is not held several times."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest
import torch

from flowedge.export.pipeline import ExportOptions, export_bundle


def bytes_of_live_tensors() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # looking at every object touches torch's deprecated ones
        tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    dense = [one for one in tensors if one.device.type == "cpu" and one.layout == torch.strided]
    storages = [one.untyped_storage() for one in dense if not one.is_nested]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.slow
def test_no_weights_are_left_in_memory_once_the_bundle_is_written(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    before = bytes_of_live_tensors()
    result = export_bundle(small_checkpoint, tmp_path / "a.flowedge", ExportOptions())
    kept = bytes_of_live_tensors() - before
    assert kept < result.bundle.graph_path("fp32").stat().st_size / 20
