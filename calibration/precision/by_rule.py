"""Add half-precision graphs to a bundle by the families' rule alone, without images and without a gate."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flowedge.bundle import Bundle, folder_for_next_version, replace_in_bundle
from flowedge.calibration.precision.converted_graph import FILES, PrecisionConverter
from flowedge.calibration.precision.half import HalfType
from flowedge.progress import SILENT, Reports


def add_half_graphs(bundle: Bundle, wanted: Sequence[HalfType], *, reports: Reports = SILENT) -> Bundle:
    """Add half-precision graphs with every block converted to a bundle.

    Args:
        bundle: The bundle, which is replaced by its next version.
        wanted: The precisions, each once. The bundle must have no graph of these precisions yet.
        reports: Receives the progress of each step.

    Returns:
        The bundle's next version.

    Raises:
        ExportError: A converted graph is not valid.
        BundleError: The bundle cannot be written.
    """
    fp32 = bundle.manifest.graph("fp32")
    with folder_for_next_version(bundle.path) as draft:
        folder = draft / "graphs"  # The draft itself already has files, which are not new.
        folder.mkdir()
        converter = PrecisionConverter(bundle.graph_path("fp32"), fp32, ranges=None)
        made = []
        for half in wanted:
            reports.step(f"converting to {half}")
            made.append(converter.write(half, converter.blocks(half), folder / FILES[half]).graph)
        manifest = msgspec.structs.replace(bundle.manifest, graphs=(*bundle.manifest.graphs, *made))
        return replace_in_bundle(
            bundle, manifest=manifest, files={file.name: file for file in sorted(folder.iterdir())}
        )
