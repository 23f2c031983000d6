"""Trace each network once a test run, however often it is exported."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from flowedge.export import pipeline
from flowedge.export.graph.onnx_export import onnx_from_model
from support.artifacts import made_once

if TYPE_CHECKING:
    from flowedge.export.graph import ir


def trace_each_network_once(patch: pytest.MonkeyPatch, factory: pytest.TempPathFactory) -> None:
    """Let exports in this process copy a graph that an export of the run has traced from the same weights and options.

    Tracing takes two thirds of an export's time. The rest of the export stays as it is, the comparison with the
    reference network included.
    """

    def traced(model: ir.FlowModel, backbone: nn.Module, path: Path, **options: Any) -> None:
        digest = hashlib.sha256(pickle.dumps((repr(backbone), model, options)))
        for name, tensor in backbone.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        kept = made_once(
            factory,
            f"traced-{digest.hexdigest()}",
            lambda empty: onnx_from_model(model, backbone, empty / path.name, **options),
        )
        for file in kept.iterdir():
            shutil.copyfile(file, path.parent / file.name)

    patch.setattr(pipeline, "onnx_from_model", traced)
