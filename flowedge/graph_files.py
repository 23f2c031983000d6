"""An ONNX graph on disk: its file, and beside it the file of its weights where they are large."""

from __future__ import annotations

from pathlib import Path
from typing import Final

EXTERNAL_ABOVE: Final = 500_000_000
"""Bytes from which on weights go into a file of their own. A protobuf ends at 2 GiB, and writing or reading one holds
its weights two more times in memory, where a file of weights beside it is written array by array and mapped."""


def weights_beside(graph: Path) -> Path:
    """The file of a graph's weights; it is not there where the graph holds them itself."""
    return graph.with_name(f"{graph.name}.data")


def bytes_of_graph(graph: Path) -> int:
    """The size of a graph with its weights."""
    return sum(file.stat().st_size for file in (graph, weights_beside(graph)) if file.exists())
