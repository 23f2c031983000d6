"""Half-precision graphs are added by the family's rule, without images."""

from __future__ import annotations

import shutil
from pathlib import Path

from flowedge.bundle import open_bundle
from flowedge.calibration.precision import add_half_graphs


def test_a_half_precision_graph_is_the_only_file_that_is_added(small_bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(shutil.copytree(small_bundle, tmp_path / "a.flowedge"))
    after = add_half_graphs(before, ("fp16",))
    added = {stored.path for stored in after.manifest.files} - {
        stored.path for stored in before.manifest.files
    }
    assert added == {"model.fp16.onnx"}
    assert [graph.precision for graph in after.manifest.graphs] == ["fp32", "fp16"]
    assert open_bundle(after.path).manifest == after.manifest
