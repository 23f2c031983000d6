"""Put the bfloat16 graph for devices in the place of the float32 graph that emulated it in the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from flowedge.bundle import Bundle
from flowedge.calibration.calibration_record import PrecisionReport
from flowedge.calibration.precision.converted_graph import PrecisionConverter
from flowedge.calibration.score_maxima import constants_of
from flowedge.graph_files import bytes_of_graph
from flowedge.manifest import Manifest
from flowedge.onnx_constants import write_constants


def with_device_graphs(
    calibrated: Bundle,
    before: Manifest,
    reports: Sequence[PrecisionReport],
    converter: PrecisionConverter,
    folder: Path,
) -> tuple[Bundle, tuple[PrecisionReport, ...], dict[str, Path | bytes]]:
    """Replace the emulated bfloat16 graph by the real one, with the score maxima that the emulation was given.

    Args:
        calibrated: The bundle that ran on this machine.
        before: The manifest of the bundle before its precisions were added.
        reports: The reports of the gate.
        converter: The converter that wrote the emulation.
        folder: A folder for the real graph.

    Returns:
        The bundle with a manifest that describes the real graph. The reports with the size of the real graph. All
        files that are new since ``before``, of every precision.
    """
    new = {
        stored.path: calibrated.path / stored.path
        for stored in calibrated.manifest.files
        if stored not in before.files
    }
    if "bf16" not in {graph.precision for graph in calibrated.manifest.graphs}:
        return calibrated, tuple(reports), dict(new)
    graph = calibrated.manifest.graph("bf16")
    real, patched = folder / "real", folder / graph.file
    real.mkdir()
    blocks = [name for name in converter.blocks("bf16") if name not in graph.given_back]
    written = converter.write("bf16", blocks, real / graph.file)
    # The emulation's weights may lie in a file beside it, whose name begins with that of the graph.
    for file in [name for name in new if name.startswith(graph.file)]:
        del new[file]
    new |= {file.name: file for file in real.iterdir()}
    if graph.scoring.score_maxima is not None:
        write_constants(real / graph.file, patched, constants_of(graph.scoring.score_maxima))
        new[graph.file] = patched
    graphs = tuple(
        msgspec.structs.replace(one, opset=written.graph.opset) if one is graph else one
        for one in calibrated.manifest.graphs
    )
    share = written.bytes / bytes_of_graph(calibrated.graph_path("fp32"))
    return (
        Bundle(calibrated.path, msgspec.structs.replace(calibrated.manifest, graphs=graphs)),
        tuple(
            msgspec.structs.replace(report, bytes_share=share) if report.precision == "bf16" else report
            for report in reports
        ),
        dict(new),
    )
