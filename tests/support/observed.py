"""Observe the values that the tensors of a graph take on a few images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowedge.calibration.precision.ranges import Observer, TensorRange


def observe(
    graph: Path,
    tensors: Sequence[str],
    images: Iterable[NDArray[np.float32]],
    *,
    threads: int | None = None,
) -> dict[str, TensorRange]:
    """Run a graph over images and count its tensors' values."""
    observer = Observer(graph, tensors, threads=threads)
    for image in images:
        observer(image)
    return observer.ranges
