"""Find the files of an ONNX graph on disk: the graph, and beside it the weights where they are large."""

from __future__ import annotations

from pathlib import Path
from typing import Final

EXTERNAL_ABOVE: Final = 500_000_000
"""The size in bytes from which on weights go into a file of their own.

A protobuf ends at 2 GiB, and writing or reading one holds its weights two more times in memory. A file of weights is
written array by array, and it is mapped into memory when it is read."""


def weights_beside(graph: Path) -> Path:
    """Return the path of a graph's weights. No file is there where the graph holds them itself."""
    return graph.with_name(f"{graph.name}.data")


def bytes_of_graph(graph: Path) -> int:
    """Return the size of a graph with its weights, in bytes."""
    return sum(file.stat().st_size for file in (graph, weights_beside(graph)) if file.exists())
